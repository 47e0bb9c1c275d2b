use proptest::prelude::*;

use super::*;
use crate::naive::{assert_near, cpus, matrix, noise, numbers, read, with_gaps, zeros};

fn expected(values: &[f32], scale: &[f32], shift: &[f32], epsilon: f64) -> Vec<f64> {
    let row = |row: &[f32]| {
        let count = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let normal = |x: &f32| (f64::from(*x) - mean) / (variance + epsilon).sqrt();
        row.iter()
            .map(normal)
            .zip(scale.iter().zip(shift))
            .map(|(x, (a, b))| x * f64::from(*a) + f64::from(*b))
            .collect::<Vec<_>>()
    };
    values.chunks_exact(scale.len()).flat_map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_are_normalised_and_copied(vectors in 1_usize..30, rows in 1_usize..5, seed in 0_u64..1000) {
        let width = vectors * 16;
        let (values, scale, shift) = (noise(rows * width, seed), noise(width, seed + 1), noise(width, seed + 2));
        let norm = Norm::new(scale.clone(), shift.clone(), 1e-12);
        let expected = expected(&values, &scale, &shift, 1e-12);
        let factors: Vec<f32> = noise(width, seed + 3).iter().map(|x| x + 1.5).collect();
        for cpu in cpus() {
            let what = cpu.tier().to_string();
            let mut x = matrix(cpu, Precision::F32, width, &values);
            norm.apply(cpu, &mut x, 0..rows, Copied::None);
            assert_near(&read(&x), &expected, 1e-5, &what);

            let mut again = matrix(cpu, Precision::F32, width, &values);
            let mut copy = zeros(Precision::Bf16, rows, width);
            norm.apply(cpu, &mut again, 0..rows, Copied::Bf16(&mut copy));
            prop_assert_eq!(read(&again), read(&x));
            prop_assert_eq!(read(&copy), read(&x).iter().map(|x| crate::naive::bf16(*x)).collect::<Vec<_>>());

            let mut again = with_gaps(&matrix(cpu, Precision::F32, width, &values));
            let mut copy = Matrix::zeros(Precision::Int8, rows, width);
            norm.apply(cpu, &mut again, 0..rows, Copied::Int8(&mut copy, &factors));
            for row in 0..rows {
                let step = f64::from(copy.scales[row]);
                let exact: Vec<f64> = x.row(row).iter().zip(&factors).map(|(x, f)| f64::from(x * f)).collect();
                let found = &read(&copy)[row * width..][..width];
                for (found, exact) in found.iter().zip(&exact) {
                    prop_assert!((f64::from(*found) - exact).abs() <= 0.51 * step, "{what}: {found} for {exact}, step {step}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_the_nearest_and_zero_is_exact(values in numbers(48)) {
        for cpu in cpus() {
            let mut values = values.clone();
            values[5] = 0.0;
            let rounded = matrix(cpu, Precision::Int8, 48, &values);
            let found = read(&rounded);
            prop_assert_eq!(found[5], 0.0);
            for (found, exact) in found.iter().zip(&values) {
                prop_assert!((found - exact).abs() <= 0.51 * rounded.scales[0]);
            }
        }
    }
}

#[test]
fn rows_of_equal_numbers_and_of_tiny_ones_are_no_trouble() {
    for cpu in cpus() {
        for value in [0.0, 1.0, -3.5, 1e-40] {
            let rounded = matrix(cpu, Precision::Int8, 16, &[value; 16]);
            assert!(read(&rounded).iter().all(|x| (x - value).abs() <= 0.01 * value.abs() + 1e-30), "{value}");
        }
    }
}

#[test]
fn bytes_of_a_row_with_what_no_byte_can_say_have_no_scale() {
    for cpu in cpus() {
        for (poison, place) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().zip([32, 45, 63]) {
            let mut values = noise(3 * 32, 9);
            values[place] = poison;
            let rounded = matrix(cpu, Precision::Int8, 32, &values);
            let found = read(&rounded);
            assert!(found[32..64].iter().all(|x| x.is_nan()), "{} {poison} at {place}", cpu.tier());
            assert!(found[..32].iter().chain(&found[64..]).all(|x| x.is_finite()));
        }
    }
}

#[test]
fn what_is_not_a_number_spoils_its_row_and_no_other() {
    for cpu in cpus() {
        let mut values = noise(3 * 32, 9);
        values[33] = f32::NAN;
        let mut x = matrix(cpu, Precision::F32, 32, &values);
        Norm::new(vec![1.0; 32], vec![0.0; 32], 1e-5).apply(cpu, &mut x, 0..3, Copied::None);
        assert!(x.row(1).iter().all(|x| x.is_nan()));
        assert!(x.row(0).iter().chain(x.row(2)).all(|x| x.is_finite()));
    }
}
