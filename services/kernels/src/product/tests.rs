use proptest::prelude::*;

use super::*;
use crate::{
    Cpu, Dense, Reserve,
    naive::{NANS, assert_near, cpus, gelu, matrix, noise, read, zeros},
};

/// A layer over these rows, and what it must give: sums in f64 of what the formats hold.
fn expected(input: &Matrix, layer: Dense<'_>, precision: Precision) -> Vec<f64> {
    let (outputs, inputs) = (layer.bias.len(), input.width());
    let weight: Vec<f32> = match precision {
        Precision::F32 => layer.weight.to_vec(),
        Precision::Bf16 => layer.weight.iter().map(|x| crate::naive::bf16(*x)).collect(),
        Precision::Int8 => layer.weight.chunks_exact(inputs).flat_map(integers).collect(),
    };
    let rows = read(input);
    let mut all = Vec::new();
    for row in rows.chunks_exact(inputs) {
        for output in 0..outputs {
            let products = row.iter().zip(&weight[output * inputs..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
            all.push(products.sum::<f64>() + f64::from(layer.bias[output]));
        }
    }
    all
}

fn integers(row: &[f32]) -> Vec<f32> {
    let scale = row.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
    row.iter().map(|x| (x / scale).round_ties_even() * scale).collect()
}

fn packed(cpu: Cpu, precision: Precision, layer: Dense<'_>) -> Weights {
    // Each block in an allocation of its own.
    Weights::pack(cpu, precision, layer, &mut Reserve::new(0))
}

fn check(rows: usize, inputs: usize, outputs: usize, seed: u64) {
    let (values, weight) = (noise(rows * inputs, seed), noise(inputs * outputs, seed + 1));
    let bias = noise(outputs, seed + 2);
    let layer = Dense { weight: &weight, bias: &bias };
    for cpu in cpus() {
        for precision in Precision::ALL {
            let what = format!("{} {precision} {rows} x {inputs} x {outputs}", cpu.tier());
            let input = matrix(cpu, precision, inputs, &values);
            let weights = packed(cpu, precision, layer);
            let expected = expected(&input, layer, precision);
            let mut out = zeros(Precision::F32, rows, outputs);
            multiply(&input, 0..rows, &weights, Epilogue::Store, (&mut out, 0));
            assert_near(&read(&out), &expected, 1e-4, &what);
            multiply(&input, 0..rows, &weights, Epilogue::Add, (&mut out, 0));
            let twice: Vec<f64> = expected.iter().map(|x| 2.0 * x).collect();
            assert_near(&read(&out), &twice, 1e-4, &what);
            multiply(&input, 0..rows, &weights, Epilogue::Gelu, (&mut out, 0));
            let activated: Vec<f64> = expected.iter().map(|x| gelu(*x)).collect();
            assert_near(&read(&out), &activated, 2e-4, &what);
            let mut out = zeros(Precision::Bf16, rows, outputs);
            multiply(&input, 0..rows, &weights, Epilogue::Store, (&mut out, 0));
            assert_near(&read(&out), &expected, 0.005, &what);
            multiply(&input, 0..rows, &weights, Epilogue::Add, (&mut out, 0));
            assert_near(&read(&out), &twice, 0.01, &what);
            // Among gaps, and without.
            for mut out in [Matrix::zeros(out.precision(), rows, outputs), zeros(out.precision(), rows, outputs)] {
                multiply(&input, 0..rows, &weights, Epilogue::Relu6, (&mut out, 0));
                let cut: Vec<f64> = expected.iter().map(|x| x.clamp(0.0, 6.0)).collect();
                assert_near(&read(&out), &cut, 0.005, &what);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_layer_is_what_the_sums_say_in_any_shape(
        rows in 1_usize..20, inputs in 1_usize..140, outputs in 1_usize..80, seed in 0_u64..1000,
    ) {
        check(rows, inputs, outputs, seed);
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others(
        rows in 1_usize..40, first in 0_usize..40, outputs in 1_usize..70, seed in 0_u64..1000,
    ) {
        let first = first % rows;
        let (values, weight, bias) = (noise(rows * 64, seed), noise(64 * outputs, seed + 1), noise(outputs, seed + 2));
        for cpu in cpus() {
            for precision in Precision::ALL {
                let input = matrix(cpu, precision, 64, &values);
                let weights = packed(cpu, precision, Dense { weight: &weight, bias: &bias });
                let mut all = Matrix::zeros(Precision::F32, rows, outputs);
                multiply(&input, 0..rows, &weights, Epilogue::Gelu, (&mut all, 0));
                let mut alone = Matrix::zeros(Precision::F32, 3, outputs);
                multiply(&input, first..first + 1, &weights, Epilogue::Gelu, (&mut alone, 1));
                prop_assert_eq!(all.row(first), alone.row(1));
                prop_assert!(alone.row(0).iter().chain(alone.row(2)).all(|x| *x == 0.0));
            }
        }
    }
}

#[test]
fn layers_of_the_networks_are_as_exact_as_small_ones() {
    check(17, 384, 96, 1);
    check(1, 1536, 33, 2);
    check(9, 48, 1000, 3);
    // EfficientNet-Lite's, which are no whole vectors.
    check(9, 24, 144, 4);
    check(9, 40, 240, 5);
    check(9, 144, 24, 6);
}

#[test]
fn sums_of_the_most_extreme_bytes_do_not_overflow() {
    let inputs = 1 << 16;
    let layer = Dense { weight: &vec![-1.0; inputs], bias: &[0.0] };
    for cpu in cpus() {
        let mut values = vec![1.0; inputs];
        values[0] = 0.0;
        let input = matrix(cpu, Precision::Int8, inputs, &values);
        let weights = packed(cpu, Precision::Int8, layer);
        let mut out = Matrix::zeros(Precision::F32, 1, 1);
        multiply(&input, 0..1, &weights, Epilogue::Store, (&mut out, 0));
        assert!((out.row(0)[0] + 65535.0).abs() < 1.0, "{}: {}", cpu.tier(), out.row(0)[0]);
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let (weight, bias) = (noise(32 * 32, 1), noise(32, 2));
    let mut values = noise(3 * 32, 3);
    for (cpu, poison) in cpus().into_iter().flat_map(|cpu| NANS.map(|poison| (cpu, poison))) {
        values[40] = poison;
        for precision in Precision::ALL {
            let input = matrix(cpu, precision, 32, &values);
            let weights = packed(cpu, precision, Dense { weight: &weight, bias: &bias });
            let mut out = Matrix::zeros(Precision::F32, 3, 32);
            multiply(&input, 0..3, &weights, Epilogue::Gelu, (&mut out, 0));
            assert!(out.row(0).iter().chain(out.row(2)).all(|x| x.is_finite()));
            assert!(out.row(1).iter().all(|x| x.is_nan()), "{} {precision}", cpu.tier());
        }
    }
}

#[test]
fn a_weight_that_is_not_a_number_spoils_its_output_and_no_other() {
    let (mut weight, bias) = (noise(32 * 32, 1), noise(32, 2));
    let poisons = [NANS[0], NANS[1], f32::INFINITY];
    for (poison, place) in poisons.into_iter().zip([5 * 32, 5 * 32 + 7, 5 * 32 + 31]) {
        weight[5 * 32..6 * 32].fill(0.5);
        weight[place] = poison;
        for cpu in cpus() {
            for precision in Precision::ALL {
                let input = matrix(cpu, precision, 32, &noise(2 * 32, 3));
                let weights = packed(cpu, precision, Dense { weight: &weight, bias: &bias });
                let mut out = Matrix::zeros(Precision::F32, 2, 32);
                multiply(&input, 0..2, &weights, Epilogue::Store, (&mut out, 0));
                for (output, x) in read(&out).iter().enumerate() {
                    assert_eq!(x.is_finite(), output % 32 != 5, "{} {precision} {poison}", cpu.tier());
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "precision, inputs and outputs")]
fn a_matrix_of_another_shape_is_refused() {
    let weights = packed(Cpu::best(), Precision::F32, Dense { weight: &[1.0; 32], bias: &[0.0; 2] });
    let input = Matrix::zeros(Precision::F32, 1, 15);
    multiply(&input, 0..1, &weights, Epilogue::Store, (&mut Matrix::zeros(Precision::F32, 1, 2), 0));
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let weights = packed(Cpu::best(), Precision::F32, Dense { weight: &[1.0; 16], bias: &[0.0] });
    for (rows, at) in [(0..2, 2), (0..1, usize::MAX), (2..4, 0), (3..3 + usize::MAX / 2, 0)] {
        let multiply = || {
            let (input, mut out) = (zeros(Precision::F32, 3, 16), zeros(Precision::F32, 3, 1));
            multiply(&input, rows.clone(), &weights, Epilogue::Store, (&mut out, at));
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(multiply)).is_err(), "{rows:?} at {at}");
    }
}
