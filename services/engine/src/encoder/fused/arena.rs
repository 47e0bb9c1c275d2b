//! What a chunk is computed in.

use kernels::{Heads, Matrix, Precision, Reserve, Scratch, Tier};

/// Bytes of the feed-forward block's inner rows that are kept at a time: with the weights that stream by they stay in a
/// second-level cache of 1 MB.
const INNER_BYTES: usize = 640 << 10;
/// A chunk has few rows or many; what is allocated is a multiple of this.
const ROWS_STEP: usize = 64;

/// Rows of activations, used again for the next chunk.
pub(super) struct Arena {
    /// What is handed from layer to layer.
    pub(super) x: Matrix,
    /// The same as the products read it, where they do not read f32.
    pub(super) copy: Option<Matrix>,
    /// Queries, keys and values side by side.
    pub(super) qkv: Matrix,
    /// What attention made of them.
    pub(super) mixed: Matrix,
    /// Some rows of the feed-forward block, and as bytes.
    pub(super) inner: Matrix,
    pub(super) inner_copy: Option<Matrix>,
    pub(super) scratch: Scratch,
}

/// What an arena is made for.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: Heads,
    /// Columns in the middle of the feed-forward block.
    pub(super) inner: usize,
    pub(super) precision: Precision,
    pub(super) tier: Tier,
}

// === impl Arena ===

impl Arena {
    pub(super) fn new(rows: usize, shape: Shape) -> Self {
        let Shape { heads, inner, precision, tier } = shape;
        let rows = rows.next_multiple_of(ROWS_STEP);
        let hidden = heads.count * heads.width;
        let copied = precision != Precision::F32;
        // bf16 is the better half of int8's 32 bits here: the sums of attention are short, and its weights never stored.
        let attention = if copied && tier.has_bf16() { Precision::Bf16 } else { Precision::F32 };
        let rounded = if precision == Precision::Bf16 { Precision::Bf16 } else { Precision::F32 };
        let inner_rows = inner_rows(inner, rounded).min(rows);
        let is_int8 = precision == Precision::Int8;
        let bytes = |precision, rows, width, used: bool| if used { Matrix::bytes(precision, rows, width) } else { 0 };
        // All in one piece, which is large enough for huge pages.
        let mut reserve = Reserve::new(
            bytes(Precision::F32, rows, hidden, true)
                + bytes(precision, rows, hidden, copied)
                + bytes(attention, rows, 3 * hidden, true)
                + bytes(rounded, rows, hidden, true)
                + bytes(rounded, inner_rows, inner, true)
                + bytes(precision, inner_rows, inner, is_int8),
        );
        let mut take = |precision, rows, width| Matrix::within(&mut reserve, precision, rows, width);
        Self {
            x: take(Precision::F32, rows, hidden),
            copy: copied.then(|| take(precision, rows, hidden)),
            qkv: take(attention, rows, 3 * hidden),
            mixed: take(rounded, rows, hidden),
            inner: take(rounded, inner_rows, inner),
            inner_copy: is_int8.then(|| take(precision, inner_rows, inner)),
            scratch: Scratch::new(rows.min(512), heads.width),
        }
    }

    /// Most rows that it takes.
    pub(super) fn rows(&self) -> usize {
        self.x.rows()
    }
}

/// Rows of the inner block that are computed at a time: whole tiles.
fn inner_rows(inner: usize, format: Precision) -> usize {
    let row = inner * size_of::<u32>() / format.values_per_word();
    (INNER_BYTES / row).next_multiple_of(8).clamp(16, 256)
}
