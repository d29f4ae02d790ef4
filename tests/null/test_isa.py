"""Instructions counted by class and loop, on assembly written for it."""

from vkbackend.isa import Counts, find_loops

NESTED = """
BB0:
	v_mov_b32_e32 v0, 0                     ; 7e000280
BB1:
	s_add_u32 s0, s0, 1                     ; 80008100
	s_delay_alu instid0(SALU_CYCLE_1)       ; bf870009
	v_dual_fmac_f32 v1, v2, v3 :: v_dual_fmac_f32 v4, v5, v6 ; c8000000
BB2:
	buffer_load_b128 v[0:3], v9, s[4:7], 0 offen ; e05c0000
	global_load_d16_b16 v4, v[0:1], off     ; dc000000
	buffer_load_ubyte v5, v9, s[4:7], 0 offen ; e0200000
	s_buffer_load_b64 s[0:1], s[4:7], null  ; f4240000
	s_cbranch_scc1 BB2                      ; bfa20000
BB3:
	ds_load_b32 v1, v0                      ; d8d80000
	scratch_load_b32 v1, off, s0            ; dc500000
	buffer_store_b32 v1, v0, s[0:3], 0 offen ; e0680000
	s_waitcnt vmcnt(0)                      ; bf8903f7
	s_cbranch_vccz BB5                      ; bfa30000
BB4:
	s_branch BB1                            ; bfa00000
BB5:
	s_endpgm                                ; bfb00000
BB6:
	v_add_f32_e32 v0, v0, v0                ; 06000100
	s_cbranch_execnz BB6                    ; bfa60000
"""


def test_loops_and_classes() -> None:
    outer, last = find_loops(NESTED)
    assert (outer.first, outer.last) == (1, 4)
    assert outer.own == Counts(valu=1, salu=3, vmem_stores=1, lds=1, scratch=1)
    (inner,) = outer.inner
    assert (inner.first, inner.last) == (2, 2)
    assert inner.own == Counts(salu=1, vmem_loads=3, smem=1, loaded_bytes=16 + 2 + 1)
    assert (last.own, last.inner) == (Counts(valu=1, salu=1), [])


def test_passes_of_inner_loops_are_multiplied() -> None:
    outer = find_loops(NESTED)[0]
    assert outer.total() == outer.total([1]) == outer.own + outer.inner[0].own
    assert outer.total([8]).vmem_loads == 24
    assert outer.total([8]).valu == 1


def test_code_without_a_loop() -> None:
    assert find_loops("BB0:\n\tv_mov_b32_e32 v0, 0 ; 7e000280\n\ts_endpgm ; bfb00000\n") == []
    assert find_loops("") == []
