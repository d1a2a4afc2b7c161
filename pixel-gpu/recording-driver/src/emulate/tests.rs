use super::*;

/// Runs a kernel of `body`, which has `%in` and `%out` as addresses, over `values`; returns as many results.
fn run(registers: &str, body: &str, block: [u32; 3], shared: usize, values: &[u32]) -> Result<Vec<u32>, String> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\n.extern .shared .align 16 .b8 room[];\n\
         .visible .entry test(\n\t.param .u64 .ptr .global .align 1 test_param_0,\n\t.param .u64 test_param_1\n)\n\
         {{\n\t.reg .b64 \t%rd<8>;\n{registers}\n\tld.param.b64 \t%rd0, [test_param_0];\n\
         \tld.param.b64 \t%rd1, [test_param_1];\n{body}\n\tret;\n}}\n"
    );
    let program = Program::parse(&text)?;
    let mut results = vec![0u32; values.len()];
    let (from, to) = (values.as_ptr() as u64, results.as_mut_ptr() as u64);
    let parameters = [from.to_le_bytes(), to.to_le_bytes()].concat();
    let allocations = [(from, 4 * values.len()), (to, 4 * values.len())];
    program.launch("test", parameters, [[1, 1, 1], block], shared, allocations.into_iter())?;
    Ok(results)
}

/// Loads the thread's value into `%r2`, does `body`, stores `%r3`.
fn each(registers: &str, body: &str, values: &[u32]) -> Vec<u32> {
    let around = format!(
        "\tmov.u32 \t%r1, %tid.x;\n\tmul.wide.u32 \t%rd2, %r1, 4;\n\tadd.s64 \t%rd3, %rd0, %rd2;\n\
         \tld.global.nc.b32 \t%r2, [%rd3];\n{body}\n\tadd.s64 \t%rd4, %rd1, %rd2;\n\tst.global.b32 \t[%rd4], %r3;"
    );
    run(&format!("\t.reg .b32 \t%r<16>;\n{registers}"), &around, [values.len() as u32, 1, 1], 256, values).unwrap()
}

#[test]
fn integers_are_computed() {
    let values = [0, 1, 7, 0x8000_0001, u32::MAX];
    let with = |f: fn(u32) -> u32| values.map(f).to_vec();
    let all = |body: &str| each("", body, &values);
    assert_eq!(all("\tmad.lo.s32 \t%r3, %r2, -3, 5;"), with(|x| x.wrapping_mul(3u32.wrapping_neg()).wrapping_add(5)));
    assert_eq!(all("\tmul.hi.u32 \t%r3, %r2, 0x10000;"), with(|x| x >> 16));
    assert_eq!(all("\tshr.s32 \t%r3, %r2, 40;"), with(|x| ((x as i32) >> 31) as u32));
    assert_eq!(all("\tshl.b32 \t%r3, %r2, 32;"), with(|_| 0));
    assert_eq!(all("\tbfe.u32 \t%r3, %r2, 1, 3;"), with(|x| x >> 1 & 7));
    assert_eq!(all("\tbfi.b32 \t%r3, %r2, 0, 4, 8;"), with(|x| (x & 255) << 4));
    assert_eq!(all("\tpopc.b32 \t%r3, %r2;"), with(u32::count_ones));
    assert_eq!(all("\tclz.b32 \t%r3, %r2;"), with(u32::leading_zeros));
    assert_eq!(all("\tmin.s32 \t%r3, %r2, 3;"), with(|x| (x as i32).min(3) as u32));
    assert_eq!(all("\tlop3.b32 \t%r3, %r2, 255, 6, 0x6A;"), with(|x| x & 255 ^ 6));
    assert_eq!(all("\tshf.r.wrap.b32 \t%r3, %r2, 1, 4;"), with(|x| x >> 4 | 1 << 28));
    let carry = "\tmad.lo.cc.u32 \t%r4, %r2, 3, 1;\n\tmadc.hi.u32 \t%r3, %r2, 3, 0;";
    assert_eq!(all(carry), with(|x| ((u64::from(x) * 3 + 1) >> 32) as u32));
    let bytes = |x: u32| x.to_le_bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>() + 9;
    assert_eq!(all("\tdp4a.u32.u32 \t%r3, %r2, 0x01010101, 9;"), values.map(bytes).to_vec());
    assert_eq!(all("\tprmt.b32 \t%r3, %r2, 0, 0x0123U;"), with(u32::swap_bytes));
}

#[test]
fn floats_are_computed() {
    let values = [1.5f32, -2.0, 0.1, f32::NAN, 1e30].map(f32::to_bits);
    let with = |f: fn(f32) -> f32| values.map(|x| f(f32::from_bits(x)).to_bits()).to_vec();
    let all = |registers: &str, body: &str| each(registers, body, &values);
    assert_eq!(all("", "\tfma.rn.f32 \t%r3, %r2, %r2, 0f3F800000;"), with(|x| x.mul_add(x, 1.0)));
    assert_eq!(all("", "\tmax.f32 \t%r3, %r2, 0f00000000;"), with(|x| x.max(0.0)));
    assert_eq!(all("", "\tneg.f32 \t%r3, %r2;")[..3], with(|x| -x)[..3]);
    let select = "\tsetp.gt.f32 \t%p1, %r2, 0f00000000;\n\tselp.b32 \t%r3, 1, 0, %p1;";
    assert_eq!(all("\t.reg .pred \t%p<3>;", select), [1, 0, 1, 0, 1]);
    let unordered = "\tsetp.gtu.f32 \t%p1, %r2, 0f00000000;\n\tselp.b32 \t%r3, 1, 0, %p1;";
    assert_eq!(all("\t.reg .pred \t%p<3>;", unordered), [1, 0, 1, 1, 1]);
    assert_eq!(all("", "\tcvt.rzi.s32.f32 \t%r3, %r2;"), [1, -2i32 as u32, 0, 0, i32::MAX as u32]);
    let half = "\tcvt.rn.f16.f32 \t%h1, %r2;\n\tcvt.f32.f16 \t%r3, %h1;";
    assert_eq!(all("\t.reg .b16 \t%h<3>;", half)[2], half::f16::from_f32(0.1).to_f32().to_bits());
    let pair = "\tcvt.rn.f16x2.f32 \t%r4, %r2, 0f3F800000;\n\tadd.f16x2 \t%r3, %r4, %r4;";
    assert_eq!(all("", pair)[..2], [0x4200_4000, 0xC400_4000]);
}

#[test]
fn lanes_read_each_other() {
    let values: Vec<u32> = (0..32).collect();
    let body = "\tactivemask.b32 \t%r4;\n\tshfl.sync.bfly.b32 \t%r3, %r2, 5, 31, %r4;";
    assert_eq!(each("", body, &values), values.iter().map(|lane| lane ^ 5).collect::<Vec<_>>());
    let body = "\tshfl.sync.down.b32 \t%r3|%p1, %r2, 30, 31, -1;";
    let expected: Vec<u32> = values.iter().map(|lane| if *lane < 2 { lane + 30 } else { *lane }).collect();
    assert_eq!(each("\t.reg .pred \t%p<2>;", body, &values), expected);
}

/// Each thread stores its value in shared memory and reads its neighbour's.
fn exchange(barrier: &str) -> Result<Vec<u32>, String> {
    let body = format!(
        "\tmov.u32 \t%r1, %tid.x;\n\tmul.wide.u32 \t%rd2, %r1, 4;\n\tadd.s64 \t%rd3, %rd0, %rd2;\n\
         \tld.global.b32 \t%r2, [%rd3];\n\tmov.b64 \t%rd5, room;\n\tshl.b32 \t%r4, %r1, 2;\n\
         \tcvt.u64.u32 \t%rd6, %r4;\n\tadd.s64 \t%rd7, %rd5, %rd6;\n\tst.shared.b32 \t[%rd7], %r2;\n{barrier}\n\
         \txor.b32 \t%r4, %r4, 4;\n\tcvt.u64.u32 \t%rd6, %r4;\n\tadd.s64 \t%rd7, %rd5, %rd6;\n\
         \tld.shared.b32 \t%r3, [%rd7];\n\tadd.s64 \t%rd4, %rd1, %rd2;\n\tst.global.b32 \t[%rd4], %r3;"
    );
    run("\t.reg .b32 \t%r<8>;\n\t.reg .pred \t%p<2>;", &body, [64, 1, 1], 256, &(0..64).collect::<Vec<_>>())
}

#[test]
fn what_no_barrier_orders_is_an_error() {
    assert_eq!(exchange("\tbar.sync \t0;").unwrap(), (0..64).map(|i| i ^ 1).collect::<Vec<u32>>());
    let error = exchange("").unwrap_err();
    assert!(error.contains("before anything is written"), "{error}");
    // As much time as one likes does not help.
    let rewritten = "\tbar.sync \t0;\n\tst.shared.b32 \t[%rd7], %r2;";
    let error = exchange(rewritten).unwrap_err();
    assert!(error.contains("by thread 0 meanwhile") || error.contains("by another thread"), "{error}");
    let some = "\tsetp.gt.u32 \t%p1, %r1, 40;\n\t@%p1 ret;\n\tbar.sync \t0;";
    let error = exchange(some).unwrap_err();
    assert!(error.contains("ended before a barrier"), "{error}");
}

#[test]
fn accesses_outside_are_errors() {
    let outside = "\tld.global.b32 \t%r1, [%rd0+64];";
    let error = run("\t.reg .b32 \t%r<4>;", outside, [1, 1, 1], 0, &[0; 16]).unwrap_err();
    assert!(error.contains("outside of it") && error.contains("line 15"), "{error}");
    let error = run("\t.reg .b32 \t%r<4>;", "\tst.shared.b32 \t[room+8], 1;", [1, 1, 1], 8, &[0]).unwrap_err();
    assert!(error.contains("of shared memory"), "{error}");
    let error = run("", "\twgmma.fence.sync.aligned;", [1, 1, 1], 0, &[0]).unwrap_err();
    assert!(error.contains("not run") && error.contains("wgmma"), "{error}");
}

#[test]
fn loops_and_vectors() {
    // The sum of four values, loaded as one vector, as often as the loop runs.
    let body = "\tld.global.nc.v4.b32 \t{%r1, %r2, %r3, %r4}, [%rd0];\n\tmov.b32 \t%r5, 0;\n\tmov.b32 \t%r6, 0;\n\
                $L__BB0_1:\n\tadd.s32 \t%r5, %r5, %r1;\n\tadd.s32 \t%r5, %r5, %r2;\n\tadd.s32 \t%r5, %r5, %r3;\n\
                \tadd.s32 \t%r5, %r5, %r4;\n\tadd.s32 \t%r6, %r6, 1;\n\tsetp.lt.u32 \t%p1, %r6, 3;\n\
                \t@%p1 bra \t$L__BB0_1;\n\tst.global.v2.b32 \t[%rd1], {%r5, %r6};";
    let found = run("\t.reg .b32 \t%r<8>;\n\t.reg .pred \t%p<2>;", body, [1, 1, 1], 0, &[1, 2, 3, 4]).unwrap();
    assert_eq!(found, [30, 3, 0, 0]);
}
