//! Products of matrices on one core.
//!
//! candle splits every larger product by the number of the machine's cores and hands the pieces to rayon. A worker owns
//! one core and runs beside other workers, so that the split only costs: with candle's operations two workers together
//! computed 1,160 tokens a second, with these and those of `rows` 2,420. Nothing but the environment of the process can
//! talk candle out of it, so this calls the same kernels directly.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// `rows` (m x k) times `weight` (k x n), a view of any strides, plus `bias` (n).
pub(crate) fn dense(rows: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    rows.apply_op3_no_bwd(weight, &bias.contiguous()?, &Dense)
}

/// `left` (m x k) times `right` (k x n), or batches of them, b x m x k times b x k x n; views of any strides.
pub(crate) fn matmul(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    left.apply_op2_no_bwd(right, &Matmul)
}

struct Dense;

impl CustomOp3 for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn cpu_fwd(
        &self,
        rows: &CpuStorage,
        rows_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, weight) = (Matrices::of(rows, rows_layout)?, Matrices::of(weight, weight_layout)?);
        let Some((start, end)) = bias_layout.contiguous_offsets() else { bail!("the bias is not contiguous") };
        let bias = &bias.as_slice::<f32>()?[start..end];
        if rows.count != 1 || weight.count != 1 || bias.len() != weight.columns {
            bail!("{rows_layout:?} x {weight_layout:?} + {bias_layout:?} is no dense layer");
        }
        let mut out = bias.repeat(rows.rows);
        multiply(&rows, &weight, &mut out, Onto::Added)?;
        Ok((CpuStorage::F32(out), (rows.rows, weight.columns).into()))
    }
}

struct Matmul;

impl CustomOp2 for Matmul {
    fn name(&self) -> &'static str {
        "matmul on one core"
    }

    fn cpu_fwd(
        &self,
        left: &CpuStorage,
        left_layout: &Layout,
        right: &CpuStorage,
        right_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (left, right) = (Matrices::of(left, left_layout)?, Matrices::of(right, right_layout)?);
        let mut out = vec![0.0; left.count * left.rows * right.columns];
        multiply(&left, &right, &mut out, Onto::Replaced)?;
        let mut shape = left_layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = right.columns;
        }
        Ok((CpuStorage::F32(out), shape.into()))
    }
}

/// What becomes of the values that stand where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Onto {
    Replaced,
    Added,
}

/// Matrices of one shape, each a view into `values`, whose furthest element lies inside.
struct Matrices<'a> {
    values: &'a [f32],
    count: usize,
    rows: usize,
    columns: usize,
    /// From one matrix, row and column to the next.
    strides: [usize; 3],
}

impl<'a> Matrices<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (count, rows, columns, strides) = match (layout.dims(), layout.stride()) {
            (&[rows, columns], &[row, column]) => (1, rows, columns, [0, row, column]),
            (&[count, rows, columns], &[matrix, row, column]) => (count, rows, columns, [matrix, row, column]),
            _ => bail!("{layout:?} is no matrix and no batch of them"),
        };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let furthest = |side: usize, stride: usize| side.saturating_sub(1) * stride;
        let last = furthest(count, strides[0]) + furthest(rows, strides[1]) + furthest(columns, strides[2]);
        if count * rows * columns > 0 && last >= values.len() {
            bail!("{layout:?} leaves its storage");
        }
        Ok(Self { values, count, rows, columns, strides })
    }
}

/// Writes all products to `out`, one after the other and row by row.
fn multiply(left: &Matrices<'_>, right: &Matrices<'_>, out: &mut [f32], onto: Onto) -> Result<()> {
    let (m, k, n) = (left.rows, left.columns, right.columns);
    if right.rows != k || right.count != left.count || out.len() != left.count * m * n {
        bail!("[{}, {m}, {k}] does not multiply [{}, {}, {n}]", left.count, right.count, right.rows);
    }
    if out.is_empty() || k == 0 {
        return Ok(());
    }
    for (index, out) in out.chunks_exact_mut(m * n).enumerate() {
        let (left_values, right_values) =
            (&left.values[index * left.strides[0]..], &right.values[index * right.strides[0]..]);
        #[expect(unsafe_code, reason = "the kernels take pointers and strides")]
        // SAFETY: `Matrices::of` checked that every element of `left` and `right` lies in its storage; `out` has m x n
        // values, row by row, and is borrowed alone.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                onto == Onto::Added,
                left_values.as_ptr(),
                left.strides[2] as isize,
                left.strides[1] as isize,
                right_values.as_ptr(),
                right.strides[2] as isize,
                right.strides[1] as isize,
                1.0_f32,
                1.0_f32,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Compares with candle's own product; sums of up to 64 values of order 1 in f32 agree within 1e-4.
    fn check(m: usize, k: usize, n: usize) {
        let rows = Tensor::randn(0.0_f32, 1.0, (m, k), &Device::Cpu).unwrap();
        let weight = Tensor::randn(0.0_f32, 1.0, (n, k), &Device::Cpu).unwrap().t().unwrap();
        let bias = Tensor::randn(0.0_f32, 1.0, n, &Device::Cpu).unwrap();
        let expected = rows.matmul(&weight).unwrap().broadcast_add(&bias).unwrap();
        for weight in [weight.clone(), weight.contiguous().unwrap()] {
            let difference = (dense(&rows, &weight, &bias).unwrap() - &expected).unwrap().abs().unwrap();
            assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-4, "{m} x {k} x {n}");
        }
    }

    #[test]
    fn the_layer_is_product_and_bias_in_any_shape() {
        for (m, k, n) in [(1, 1, 1), (1, 64, 7), (17, 5, 33), (40, 64, 48), (3, 9, 1)] {
            check(m, k, n);
        }
    }

    #[test]
    fn batches_are_products_one_by_one() {
        let all = Tensor::randn(0.0_f32, 1.0, (9, 3, 4, 6), &Device::Cpu).unwrap();
        let part = |index: usize| all.narrow(1, index, 1).unwrap().squeeze(1).unwrap().transpose(0, 1).unwrap();
        let (left, right) = (part(0), part(2).t().unwrap());
        let expected = left.contiguous().unwrap().matmul(&right.contiguous().unwrap()).unwrap();
        let product = matmul(&left, &right).unwrap();
        assert_eq!(product.dims(), [4, 9, 9]);
        let difference = (product - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
    }

    #[test]
    fn views_are_read_where_they_stand() {
        let device = Device::Cpu;
        let all = Tensor::arange(0.0_f32, 24.0, &device).unwrap().reshape((6, 4)).unwrap();
        let (rows, weight) = (all.narrow(0, 2, 2).unwrap(), all.narrow(0, 1, 4).unwrap().narrow(1, 1, 3).unwrap());
        let bias = Tensor::zeros(3, candle_core::DType::F32, &device).unwrap();
        let expected = rows.matmul(&weight.contiguous().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(dense(&rows, &weight, &bias).unwrap().to_vec2::<f32>().unwrap(), expected);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(dense(&zeros(&[2, 3]), &zeros(&[4, 5]), &zeros(&[5])).is_err());
        assert!(dense(&zeros(&[2, 3]), &zeros(&[3, 5]), &zeros(&[4])).is_err());
        assert!(dense(&zeros(&[1, 2, 3]), &zeros(&[2, 3, 5]), &zeros(&[5])).is_err());
        assert!(matmul(&zeros(&[2, 4, 3]), &zeros(&[1, 3, 5])).is_err());
        assert!(matmul(&zeros(&[3]), &zeros(&[3, 5])).is_err());
        assert_eq!(dense(&zeros(&[0, 3]), &zeros(&[3, 5]), &zeros(&[5])).unwrap().dims(), [0, 5]);
    }
}
