//! Values of ONNX tensors.

use super::graph::Tensor;

/// Types of `TensorProto.DataType`.
pub(super) const FLOAT: i32 = 1;
pub(super) const UINT8: i32 = 2;
pub(super) const INT8: i32 = 3;

impl Tensor {
    pub(super) fn is_f32(&self) -> bool {
        self.data_type == FLOAT
    }

    pub(super) fn shape(&self) -> Result<Vec<usize>, String> {
        let side = |dim: &i64| usize::try_from(*dim).map_err(|_| format!("{:?} has a side of {dim}", self.name));
        self.dims.iter().map(side).collect()
    }

    /// The values of an f32 tensor, as many as its shape says.
    pub(super) fn floats(&self) -> Result<Vec<f32>, String> {
        if !self.is_f32() {
            return Err(format!("{:?} has the type {}, not f32", self.name, self.data_type));
        }
        let raw =
            self.raw_data.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let values = if self.raw_data.is_empty() { self.float_data.clone() } else { raw.collect() };
        self.counted(values)
    }

    /// The values of an int8 or uint8 tensor, as many as its shape says.
    pub(super) fn bytes(&self) -> Result<Vec<i16>, String> {
        let signed = match self.data_type {
            INT8 => true,
            UINT8 => false,
            other => return Err(format!("{:?} has the type {other}, not int8 or uint8", self.name)),
        };
        let read = |byte: &u8| if signed { i16::from(byte.cast_signed()) } else { i16::from(*byte) };
        let listed = |value: &i32| i16::try_from(*value).map_err(|_| format!("{:?} has the value {value}", self.name));
        let values = if self.raw_data.is_empty() {
            self.int32_data.iter().map(listed).collect::<Result<_, _>>()?
        } else {
            self.raw_data.iter().map(read).collect()
        };
        self.counted(values)
    }

    fn counted<T>(&self, values: Vec<T>) -> Result<Vec<T>, String> {
        let shape = self.shape()?;
        let count = shape.iter().try_fold(1_usize, |count, side| count.checked_mul(*side));
        if count == Some(values.len()) {
            return Ok(values);
        }
        Err(format!("{:?} has {} values for the shape {shape:?}", self.name, values.len()))
    }
}

/// A quantised matrix: value = (q - zero point) x scale, with one zero point and scale for all or one per column.
pub(super) struct Matrix<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    values: &'a Tensor,
    scales: Vec<f32>,
    zeros: Vec<i16>,
}

impl<'a> Matrix<'a> {
    pub(super) fn new(values: &'a Tensor, scale: &Tensor, zero: &Tensor) -> Result<Self, String> {
        let [rows, columns] = values.shape()?[..] else {
            return Err(format!("{:?} has {} sides, not 2", values.name, values.dims.len()));
        };
        let (scales, zeros) = (scale.floats()?, zero.bytes()?);
        let fits = |count: usize| count == 1 || count == columns;
        if !fits(scales.len()) || scales.len() != zeros.len() {
            return Err(format!("{:?} has {} scales for {columns} columns", values.name, scales.len()));
        }
        Ok(Self { rows, columns, values, scales, zeros })
    }

    /// Row by row.
    pub(super) fn dequantised(&self) -> Result<Vec<f32>, String> {
        let values = self.values.bytes()?;
        Ok(values.iter().enumerate().map(|(index, value)| self.value(*value, index % self.columns)).collect())
    }

    /// Column by column.
    pub(super) fn transposed(&self) -> Result<Vec<f32>, String> {
        let values = self.values.bytes()?;
        let column =
            |column: usize| values.iter().skip(column).step_by(self.columns).map(move |value| (column, *value));
        Ok((0..self.columns).flat_map(column).map(|(column, value)| self.value(value, column)).collect())
    }

    fn value(&self, value: i16, column: usize) -> f32 {
        let column = if self.scales.len() == 1 { 0 } else { column };
        f32::from(value - self.zeros[column]) * self.scales[column]
    }
}
