use proptest::prelude::*;

use super::*;
use crate::naive::{assert_near, cpus, matrix, noise, read, zeros};

/// Attention of one text, in f64 over what the matrix holds.
fn expected(qkv: &[f32], heads: Heads) -> Vec<f64> {
    let columns = heads.count * heads.width;
    let rows: Vec<&[f32]> = qkv.chunks_exact(3 * columns).collect();
    let mut out = Vec::new();
    for query in &rows {
        for head in 0..heads.count {
            let part = |row: &[f32], index: usize| {
                let start = index * columns + head * heads.width;
                row[start..start + heads.width].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
            };
            let query = part(query, 0);
            let dot = |key: Vec<f64>| query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>();
            let powers: Vec<f64> = rows.iter().map(|row| dot(part(row, 1)).exp()).collect();
            let sum: f64 = powers.iter().sum();
            for column in 0..heads.width {
                out.push(rows.iter().zip(&powers).map(|(row, p)| p * part(row, 2)[column]).sum::<f64>() / sum);
            }
        }
    }
    out
}

fn check(rows: usize, heads: Heads, seed: u64) {
    let columns = heads.count * heads.width;
    let values = noise(rows * 3 * columns, seed);
    for cpu in cpus() {
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.01)] {
            let qkv = matrix(cpu, precision, 3 * columns, &values);
            let expected = expected(&read(&qkv), heads);
            let mut scratch = Scratch::new(1, 32);
            for out in [Precision::F32, Precision::Bf16] {
                let mut out = zeros(out, rows, columns);
                attend(cpu, &qkv, 0..rows, heads, (&mut out, &mut scratch));
                let tolerance = if out.precision() == Precision::Bf16 { 0.01 } else { tolerance };
                assert_near(&read(&out), &expected, tolerance, &format!("{} {precision} {rows} {heads:?}", cpu.tier()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rows_are_mixed_by_the_likeness_of_their_keys(rows in 1_usize..70, count in 1_usize..3, width in 1_usize..3, seed in 0_u64..99) {
        check(rows, Heads { count, width: 32 * width }, seed);
    }

    #[test]
    fn a_text_is_the_same_alone_and_among_others(before in 0_usize..30, rows in 1_usize..50, after in 0_usize..30, seed in 0_u64..99) {
        let heads = Heads { count: 2, width: 32 };
        let values = noise((before + rows + after) * 192, seed);
        for cpu in cpus() {
            for precision in [Precision::F32, Precision::Bf16] {
                let among = matrix(cpu, precision, 192, &values);
                let alone = matrix(cpu, precision, 192, &values[before * 192..(before + rows) * 192]);
                let (mut all, mut one) = (Matrix::zeros(Precision::F32, before + rows + after, 64), Matrix::zeros(Precision::F32, rows, 64));
                let mut scratch = Scratch::new(8, 32);
                // The scratch has been used for something longer.
                attend(cpu, &among, 0..before + rows + after, heads, (&mut all, &mut scratch));
                attend(cpu, &among, before..before + rows, heads, (&mut all, &mut scratch));
                attend(cpu, &alone, 0..rows, heads, (&mut one, &mut Scratch::new(rows, 32)));
                for row in 0..rows {
                    prop_assert_eq!(all.row(before + row), one.row(row));
                }
            }
        }
    }
}

#[test]
fn long_texts_and_large_scores_are_no_exception() {
    check(300, Heads { count: 1, width: 64 }, 5);
    let heads = Heads { count: 1, width: 32 };
    let values: Vec<f32> = noise(20 * 96, 7).iter().map(|x| x * 20.0).collect();
    for cpu in cpus() {
        let qkv = matrix(cpu, Precision::F32, 96, &values);
        let mut out = zeros(Precision::F32, 20, 32);
        attend(cpu, &qkv, 0..20, heads, (&mut out, &mut Scratch::new(20, 32)));
        assert!(read(&out).iter().all(|x| x.is_finite() && x.abs() <= 20.0));
    }
}

#[test]
fn what_is_not_a_number_is_not_lost() {
    let heads = Heads { count: 1, width: 32 };
    for poisoned in [3 * 96 + 40, 3 * 96 + 70, 3 * 96] {
        let mut values = noise(20 * 96, 7);
        values[poisoned] = f32::NAN;
        for cpu in cpus() {
            for precision in [Precision::F32, Precision::Bf16] {
                let qkv = matrix(cpu, precision, 96, &values);
                let mut out = zeros(Precision::F32, 20, 32);
                attend(cpu, &qkv, 0..20, heads, (&mut out, &mut Scratch::new(20, 32)));
                assert!(out.row(3).iter().any(|x| x.is_nan()), "{} {precision} {poisoned}", cpu.tier());
            }
        }
    }
}

#[test]
#[should_panic(expected = "less than the address space")]
fn heads_beyond_the_address_space_are_refused() {
    let (qkv, mut out) = (zeros(Precision::F32, 1, 0), zeros(Precision::F32, 1, 0));
    let heads = Heads { count: 1 << 59, width: 32 };
    attend(Cpu::best(), &qkv, 0..1, heads, (&mut out, &mut Scratch::new(1, 32)));
}
