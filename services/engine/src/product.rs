//! Products of matrices on one core.
//!
//! candle splits every larger product by the number of the machine's cores and hands the pieces to rayon. A worker owns
//! one core and runs beside other workers, so that the split only costs. Nothing but the environment of the process can
//! talk candle out of it, so this calls the same kernels directly.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// `rows` (m x k) times `weight` (k x n), a view of any strides, plus `bias` (n).
pub(crate) fn dense(rows: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    rows.apply_op3_no_bwd(weight, &bias.contiguous()?, &Dense)
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
        let (rows, weight) = (Matrix::of(rows, rows_layout)?, Matrix::of(weight, weight_layout)?);
        let Some((start, end)) = bias_layout.contiguous_offsets() else { bail!("the bias is not contiguous") };
        let bias = &bias.as_slice::<f32>()?[start..end];
        if bias.len() != weight.columns {
            bail!("{rows_layout:?} x {weight_layout:?} + {bias_layout:?} is no dense layer");
        }
        let mut out = bias.repeat(rows.rows);
        multiply(&rows, &weight, &mut out)?;
        Ok((CpuStorage::F32(out), (rows.rows, weight.columns).into()))
    }
}

/// A matrix: a view into `values`, whose furthest element lies inside.
struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// From one row and column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (&[rows, columns], &[row, column]) = (layout.dims(), layout.stride()) else {
            bail!("{layout:?} is no matrix")
        };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let last = rows.saturating_sub(1) * row + columns.saturating_sub(1) * column;
        if rows * columns > 0 && last >= values.len() {
            bail!("{layout:?} leaves its storage");
        }
        Ok(Self { values, rows, columns, strides: [row, column] })
    }
}

/// Adds the product to `out`, row by row.
fn multiply(left: &Matrix<'_>, right: &Matrix<'_>, out: &mut [f32]) -> Result<()> {
    let (m, k, n) = (left.rows, left.columns, right.columns);
    if right.rows != k || out.len() != m * n {
        bail!("[{m}, {k}] does not multiply [{}, {n}]", right.rows);
    }
    if out.is_empty() || k == 0 {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "the kernels take pointers and strides")]
    // SAFETY: `Matrix::of` checked that every element of `left` and `right` lies in its storage; `out` has m x n values,
    // row by row, and is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            true,
            left.values.as_ptr(),
            left.strides[1] as isize,
            left.strides[0] as isize,
            right.values.as_ptr(),
            right.strides[1] as isize,
            right.strides[0] as isize,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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
        assert_eq!(dense(&zeros(&[0, 3]), &zeros(&[3, 5]), &zeros(&[5])).unwrap().dims(), [0, 5]);
    }
}
