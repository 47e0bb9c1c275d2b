use proptest::prelude::*;

use super::*;
use crate::{
    Epilogue, multiply,
    naive::{assert_near, bf16, cpus, noise, read},
};

/// What bytes stand for: another number for each colour.
fn numbers() -> [[f32; 256]; 3] {
    [1.0, 2.0, 3.0].map(|colour| std::array::from_fn(|byte| (byte as f32 - 127.0) / 64.0 + colour))
}

fn expected(image: &[u8], size: Size, (weight, bias): (&[f32], &[f32]), precision: Precision) -> Vec<f64> {
    let round = |x: f32| if precision == Precision::Bf16 { bf16(x) } else { x };
    let (numbers, (top, left)) = (numbers(), (WINDOW.border(size.height).0, WINDOW.border(size.width).0));
    let mut all = Vec::new();
    for (y, x) in (0..size.height.div_ceil(2)).flat_map(|y| (0..size.width.div_ceil(2)).map(move |x| (y, x))) {
        for (output, bias) in bias.iter().enumerate() {
            let mut sum = f64::from(*bias);
            for (place, weight) in weight[output * 27..][..27].iter().enumerate() {
                let (ky, kx, colour) = (place / 9, place / 3 % 3, place % 3);
                let (y, x) = ((2 * y + ky).wrapping_sub(top), (2 * x + kx).wrapping_sub(left));
                if y < size.height && x < size.width {
                    let byte = image[(y * size.width + x) * 3 + colour];
                    sum += f64::from(round(numbers[colour][usize::from(byte)])) * f64::from(round(*weight));
                }
            }
            all.push(sum.clamp(0.0, 6.0));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_image_is_convolved_as_the_sums_say(
        (height, width) in (1_usize..20, 1_usize..40), strip in 1_usize..9, outputs in 1_usize..40, seed in 0_u64..1000,
    ) {
        let size = Size { height, width };
        let image: Vec<u8> = noise(size.pixels() * 3, seed).into_iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
        let (weight, bias) = (noise(outputs * 27, seed + 1), noise(outputs, seed + 2));
        for cpu in cpus() {
            for precision in [Precision::F32, Precision::Bf16] {
                let layer = Dense { weight: &weight, bias: &bias };
                let stem = Stem::pack((cpu, precision), layer, &numbers(), &mut Reserve::new(0));
                let mut patches = Patches::new(precision, size, strip, &mut Reserve::new(0));
                let out = Stem::output(size);
                let mut found = Matrix::zeros(Precision::F32, out.pixels(), outputs);
                for first in (0..out.height).step_by(strip) {
                    let lines = first..(first + strip).min(out.height);
                    let rows = stem.gather(&image, size, lines, &mut patches);
                    let at = first * out.width;
                    multiply(rows, 0..rows.rows(), stem.weights(), Epilogue::Relu6, (&mut found, at));
                }
                let expected = expected(&image, size, (&weight, &bias), precision);
                assert_near(&read(&found), &expected, 1e-4, &format!("{} {precision}", cpu.tier()));
            }
        }
    }
}

#[test]
#[should_panic(expected = "bytes of")]
fn an_image_of_another_size_is_refused() {
    let layer = Dense { weight: &[1.0; 27], bias: &[0.0] };
    let mut reserve = Reserve::new(0);
    let stem = Stem::pack((Cpu::best(), Precision::F32), layer, &numbers(), &mut reserve);
    let size = Size { height: 4, width: 4 };
    stem.gather(&[0; 47], size, 0..1, &mut Patches::new(Precision::F32, size, 1, &mut reserve));
}

#[test]
#[should_panic(expected = "5 lines of 22 numbers in 54")]
fn patches_without_room_are_refused() {
    let layer = Dense { weight: &[1.0; 27], bias: &[0.0] };
    let mut reserve = Reserve::new(0);
    let stem = Stem::pack((Cpu::best(), Precision::F32), layer, &numbers(), &mut reserve);
    let size = Size { height: 4, width: 5 };
    let mut patches = Patches::new(Precision::F32, size, 2, &mut reserve);
    // Room for the rows and not for the lines that they are gathered from.
    patches.lines = reserve.take(54);
    stem.gather(&[0; 60], size, 0..2, &mut patches);
}

#[test]
#[should_panic(expected = "precision of the patches")]
fn patches_of_another_precision_are_refused() {
    let layer = Dense { weight: &[1.0; 27], bias: &[0.0] };
    let mut reserve = Reserve::new(0);
    let stem = Stem::pack((Cpu::best(), Precision::F32), layer, &numbers(), &mut reserve);
    let size = Size { height: 4, width: 4 };
    stem.gather(&[0; 48], size, 0..1, &mut Patches::new(Precision::Bf16, size, 1, &mut reserve));
}
