"""A real computation before a device is trusted: drivers may choose narrower subgroups than they report.

One small pipeline is probed. A driver that chooses the width for each pipeline could still run a larger one narrower;
only a required subgroup size, which stock Kompute cannot ask for, would rule that out.
"""

from __future__ import annotations

import numpy as np

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.program import Program

PROBE = Kernel("probe_subgroup.comp", (("result", "w"),))


def require_full_subgroups(device: Device) -> None:
    """Run a workgroup of the reported subgroup size and check that it was one whole subgroup.

    Raises:
        DeviceError: it was not, so reductions over a workgroup would be wrong.
    """
    result = Buffer(device, 8, "probe", host=True)
    program = Program(device, "probe")
    program.launch(PROBE, {"result": result}, (1, 1, 1))
    program.run()
    size, lanes = (int(n) for n in result.download(np.uint32, 2))
    program.free()
    result.free()
    expected = device.subgroup_size
    if (size, lanes) != (expected, expected):
        raise DeviceError(
            f"{device.info.name} ran a workgroup of {expected} in subgroups of {size} with {lanes} active; expected "
            f"one whole subgroup of {expected}: choose another --device"
        )
