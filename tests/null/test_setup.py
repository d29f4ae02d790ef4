"""tools/setup.sh on machines that lack something, made of stubs on the PATH: what it installs and what it says."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REAL_TOOLS = (
    "awk",
    "bash",
    "cat",
    "cp",
    "dirname",
    "env",
    "grep",
    "head",
    "mkdir",
    "paste",
    "rm",
    "sha256sum",
    "tail",
    "tee",
    "touch",
)
USABLE = "llvmpipe (cpu, Mesa 25.0.7): usable"
APT_INSTALL = "apt-get -o DPkg::Lock::Timeout=120 install -y --no-remove --no-install-recommends"
ALL_PACKAGES = "g++ gcc make glslang-tools spirv-tools libvulkan-dev libfmt-dev"

# The interpreter: the probe answers what $FAKE/device says, and an environment is two stubs.
PYTHON = """
case "$*" in
*--layer*) [ -e "$FAKE/validation" ] || exit 3 ;;
*vulkan_probe.py) cat "$FAKE/device"; grep -q ': usable' "$FAKE/device" || exit 3 ;;
*"-m venv"*) mkdir -p .tools/uv/bin; cp "$FAKE/pip" .tools/uv/bin/python; cp "$FAKE/uv" .tools/uv/bin/uv ;;
esac
"""
# apt-get: notes its arguments; the driver's installation brings the device that $FAKE/device.after names.
APT = r"""
echo "apt-get $*" >>"$FAKE/calls"
case "$*" in
*indextargets*) cat "$FAKE/targets" ;;
*install*) cat "$FAKE/apt.says"; [ ! -s "$FAKE/apt.says" ] || exit 100
  case "$*" in *mesa-vulkan-drivers*) cp "$FAKE/device.after" "$FAKE/device" ;; esac
  case "$*" in *vulkan-validationlayers*) touch "$FAKE/validation" ;; esac ;;
esac
"""
SUDO = """
[ "$1" != -v ] || exit "$(cat "$FAKE/sudo.code")"
if [ "$1" = tee ]; then { echo "# $2"; cat; } >>"$FAKE/written"; else "$@"; fi
"""
PIP = 'echo "pip $*" >>"$FAKE/calls"; cat "$FAKE/pip.says" >&2; [ ! -s "$FAKE/pip.says" ]'
UV = """
if [ "$1" = --version ]; then echo "uv $(cat "$FAKE/uv.version")"; exit; fi
echo "uv $*" >>"$FAKE/calls"; cat "$FAKE/uv.says" >&2; [ ! -s "$FAKE/uv.says" ] || exit 1
touch vkbackend/companion/liblatentvk_companion.so
mkdir -p .venv/bin; cp "$FAKE/bin/python3" .venv/bin/python; cp "$FAKE/bin/python3" .venv/bin/latentvk
"""
DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
UBUNTU_24_04 = 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'


class Machine:
    """A checkout in a path with a space, and a PATH that holds only stubs and the few real tools the script needs."""

    def __init__(self, folder: Path) -> None:
        self.fake = folder / "fake"
        self.bin = self.fake / "bin"
        self.checkout = folder / "a checkout"
        self.bin.mkdir(parents=True)
        (self.checkout / "tools").mkdir(parents=True)
        self.companion = self.checkout / "vkbackend" / "companion"
        self.companion.mkdir(parents=True)
        for name in ("layer.c", "layer.h"):
            (self.companion / name).touch()
        for name in ("tools/setup.sh", "tools/vulkan_probe.py", "pyproject.toml", "hatch_build.py"):
            shutil.copy(ROOT / name, self.checkout / name)
        for name in REAL_TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        for name, body in {"python3": PYTHON, "apt-get": APT, "sudo": SUDO}.items():
            self.stub(self.bin / name, body)
        for name in ("g++", "cc", "make", "glslangValidator", "spirv-val"):
            self.stub(self.bin / name, "cat >/dev/null")
        self.stub(self.fake / "pip", PIP)
        self.stub(self.fake / "uv", UV)
        self.user(0)
        self.put("device", USABLE)
        self.put("device.after", USABLE)
        self.put("sudo.code", "0")
        self.put("os-release", DEBIAN_12)
        self.put("targets", "bookworm main mirror:/debian/\nbookworm-updates main mirror:/debian/\n")
        version = (ROOT / "tools/setup.sh").read_text().split("UV_VERSION=")[1].split()[0]
        self.put("uv.version", version)
        for name in ("calls", "written", "apt.says", "pip.says", "uv.says"):
            self.put(name, "")

    def stub(self, path: Path, body: str) -> None:
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def user(self, uid: int) -> None:
        self.stub(self.bin / "id", f"echo {uid}")

    def put(self, name: str, text: str) -> None:
        (self.fake / name).write_text(text)

    def lacks(self, *tools: str) -> None:
        for tool in tools:
            (self.bin / tool).unlink()

    @property
    def calls(self) -> list[str]:
        return (self.fake / "calls").read_text().splitlines()

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code of the script and the last line it prints."""
        environment = {
            "PATH": str(self.bin),
            "FAKE": str(self.fake),
            "LATENTVK_PYTHON": str(self.bin / "python3"),
            "LATENTVK_OS_RELEASE": str(self.fake / "os-release"),
        }
        done = subprocess.run(
            [str(self.bin / "bash"), "tools/setup.sh", *arguments],
            cwd=self.checkout,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, (done.stderr.splitlines() or [""])[-1]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_complete_machine_gets_only_the_environment_and_the_second_run_does_nothing(machine: Machine) -> None:
    assert machine.run() == (0, "setup: done")
    assert [call.split()[0] for call in machine.calls] == ["pip", "uv"]
    machine.put("calls", "")
    machine.lacks("apt-get", "sudo")
    assert machine.run() == (0, "")
    assert machine.calls == []


@pytest.mark.parametrize("name", ["pyproject.toml", "hatch_build.py", "vkbackend/companion/layer.h"])
def test_what_the_environment_is_built_from_has_changed(machine: Machine, name: str) -> None:
    machine.run()
    machine.put("calls", "")
    with (machine.checkout / name).open("a") as file:
        file.write("\n")
    assert machine.run() == (0, "setup: done")
    assert [call.split()[0] for call in machine.calls] == ["uv"]


def test_a_lost_companion_library_is_compiled_again(machine: Machine) -> None:
    machine.run()
    machine.put("calls", "")
    (machine.companion / "liblatentvk_companion.so").unlink()
    assert machine.run() == (0, "setup: done")
    assert [call.split()[0] for call in machine.calls] == ["uv"]
    assert "--reinstall-package latentvk" in machine.calls[0]


@pytest.mark.parametrize("argument", ["--tests", "--system"])
def test_the_validation_layers_are_installed_for_the_tests(machine: Machine, argument: str) -> None:
    assert machine.run()[0] == 0
    machine.put("calls", "")
    assert machine.run(argument)[0] == 0
    assert machine.calls[:2] == ["apt-get update", f"{APT_INSTALL} vulkan-validationlayers"]
    machine.put("calls", "")
    assert machine.run(argument) == (0, "")
    assert machine.calls == []


def test_a_moved_checkout_is_built_anew(machine: Machine) -> None:
    machine.run()
    moved = machine.checkout.rename(machine.checkout.parent / "moved here")
    machine.checkout = moved
    (moved / ".venv" / "old").touch()
    assert machine.run() == (0, "setup: done")
    assert not (moved / ".venv" / "old").exists()


def test_missing_tools_come_from_apt_without_recommends(machine: Machine) -> None:
    machine.lacks("glslangValidator")
    code, line = machine.run()
    assert code == 1  # the stub installs nothing
    assert line == (
        "setup: error: still missing after the installation: glslang-tools; a Python of 3.11 or newer is needed "
        "(Debian 12, Ubuntu 24.04 or newer)"
    )
    assert machine.calls == [
        "apt-get update",
        f"{APT_INSTALL} glslang-tools",
    ]


def test_an_old_driver_on_debian_12_is_replaced_from_the_backports_of_the_machines_own_mirror(machine: Machine) -> None:
    machine.put("device", "llvmpipe (cpu, Mesa 22.3.6): not usable: Mesa is older than 24")
    machine.user(1000)
    assert machine.run() == (0, "setup: done")
    written = (machine.fake / "written").read_text().splitlines()
    assert written[:5] == [
        "# /etc/apt/sources.list.d/bookworm-backports.sources",
        "Types: deb",
        "URIs: mirror:/debian/",
        "Suites: bookworm-backports",
        "Components: main",
    ]
    assert [c for c in machine.calls if c.startswith(APT_INSTALL)] == [
        f"{APT_INSTALL} -t bookworm-backports mesa-vulkan-drivers"
    ]


def test_backports_that_are_there_are_not_added_again(machine: Machine) -> None:
    machine.put("device", "no Vulkan device")
    machine.put("targets", "bookworm main mirror:/debian/\nbookworm-backports main mirror:/debian/\n")
    assert machine.run() == (0, "setup: done")
    assert (machine.fake / "written").read_text() == ""


def test_ubuntu_takes_its_own_driver(machine: Machine) -> None:
    machine.put("os-release", UBUNTU_24_04)
    machine.put("device", "no Vulkan driver")
    assert machine.run() == (0, "setup: done")
    assert [c for c in machine.calls if c.startswith(APT_INSTALL)] == [f"{APT_INSTALL} mesa-vulkan-drivers"]


def no_apt(machine: Machine) -> None:
    machine.lacks("apt-get", "g++", "cc", "make", "glslangValidator", "spirv-val")


def no_sudo(machine: Machine) -> None:
    machine.user(1000)
    machine.lacks("sudo", "glslangValidator")


def sudo_refused(machine: Machine) -> None:
    machine.user(1000)
    machine.put("sudo.code", "1")
    machine.lacks("glslangValidator")


def mirror_unreachable(machine: Machine) -> None:
    machine.lacks("glslangValidator")
    machine.put("apt.says", "E: Failed to fetch glslang-tools  Temporary failure resolving 'mirror'\n")


def apt_is_busy(machine: Machine) -> None:
    machine.lacks("glslangValidator")
    machine.put("apt.says", "E: Could not get lock /var/lib/dpkg/lock-frontend\n")


def apt_is_broken(machine: Machine) -> None:
    machine.lacks("glslangValidator")
    machine.put("apt.says", "E: Unmet dependencies\n")


def no_device_for_the_loader(machine: Machine) -> None:
    machine.put("device", "no Vulkan driver")
    machine.put("device.after", "no Vulkan device")


def no_mirror(machine: Machine) -> None:
    machine.put("device", "no Vulkan loader (libvulkan.so.1)")
    machine.put("targets", "")


def pip_offline(machine: Machine) -> None:
    machine.put("pip.says", "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution\n")


def uv_offline(machine: Machine) -> None:
    machine.put("uv.says", "error: Failed to fetch: dns error\n")


def kompute_does_not_compile(machine: Machine) -> None:
    machine.put("uv.says", "  x Failed to build `kp==0.9.0`\n")


def not_our_folder(machine: Machine) -> None:
    (machine.checkout / ".tools").write_text("")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            no_apt,
            "this system has no apt-get; install what these Debian packages hold, then run make again: " + ALL_PACKAGES,
        ),
        (
            no_sudo,
            "root must install glslang-tools and there is no sudo; as root run 'make system' here, then run make again",
        ),
        (
            sudo_refused,
            "root must install glslang-tools and sudo was refused; as root run 'make system' here, then run make again",
        ),
        (
            mirror_unreachable,
            "apt-get could not fetch: glslang-tools; check the network and apt's sources (apt-get update), then run "
            "make again",
        ),
        (apt_is_busy, "another program is installing packages; wait until it has ended, then run make again"),
        (
            apt_is_broken,
            "apt-get could not install: glslang-tools; its last lines are above, all of them in .tools/setup.log",
        ),
        (
            no_device_for_the_loader,
            "Mesa is installed and there is still no usable Vulkan device (no Vulkan device); unset VK_DRIVER_FILES "
            "and VK_ICD_FILENAMES if they are set, or update the driver",
        ),
        (
            no_mirror,
            "apt's sources name no Debian mirror for bookworm, so Mesa 25 cannot come from bookworm-backports; add "
            "that source, then run make again",
        ),
        (
            pip_offline,
            "uv could not be fetched; check the network (and HTTPS_PROXY, or PIP_CERT behind a proxy with its own "
            "certificate), then run make again",
        ),
        (
            uv_offline,
            "Python packages could not be fetched; check the network (and HTTPS_PROXY, or SSL_CERT_FILE behind a proxy "
            "with its own certificate), then run make again",
        ),
        (
            kompute_does_not_compile,
            "the Python environment could not be built; uv's message is above, all of it in .tools/setup.log; for kp "
            "look at the compiler's words first",
        ),
    ],
)
def test_a_failing_step_says_what_failed_and_the_remedy(
    machine: Machine, break_it: Callable[[Machine], None], message: str
) -> None:
    break_it(machine)
    assert machine.run() == (1, "setup: error: " + message)
    assert not (machine.checkout / ".venv/latentvk-setup").exists()


def test_a_folder_that_cannot_be_written(machine: Machine) -> None:
    not_our_folder(machine)
    where = f".tools/setup.log in {os.path.realpath(machine.checkout)}"
    assert machine.run() == (
        1,
        f"setup: error: cannot write {where}; make the checkout yours (chown), then run make again",
    )


def test_a_python_that_is_too_old_is_refused(machine: Machine) -> None:
    machine.stub(machine.bin / "old", "exit 1")
    old = machine.bin / "old"
    assert machine.run(LATENTVK_PYTHON=str(old)) == (
        1,
        f"setup: error: LATENTVK_PYTHON={old} is not a Python of 3.11 or newer; name one that is, or unset it",
    )


@pytest.mark.parametrize(
    ("uid", "argument", "message"),
    [
        (0, "--sytem", "unknown argument --sytem; expected --tests, --system or none"),
        (1000, "--system", "--system is for root; without root run make, which asks sudo"),
    ],
)
def test_wrong_use(machine: Machine, uid: int, argument: str, message: str) -> None:
    machine.user(uid)
    assert machine.run(argument) == (1, "setup: error: " + message)
