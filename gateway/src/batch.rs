//! Batches taken apart and put together again.
//!
//! A batch of thousands occupies one replica while others idle, and beyond the replica's limit it is refused. So the
//! gateway cuts it into pieces, sends each on its own way, and joins the replies in the order of the request. Neither
//! side is decoded: a piece is the fields of the request with fewer items, and a joined reply the fields of the first one
//! with the results of all. A result says its position in a field of its own, and of a number that stands twice in a
//! message the last one counts: appending the position in the whole batch corrects it.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};
use prost::{
    Message as _,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};
use proto::common::v1 as pb;

use crate::wire::{self, Field, Malformed, put_content, put_number};

/// `index` of every result.
const INDEX: u32 = 1;
/// `score` of a `RerankResult`.
const SCORE: u32 = 2;
/// `model` of every request, and `revision` in it.
const SELECTOR: u32 = 1;
const REVISION: u32 = 2;

/// How the batches of a method are written, in numbers of fields. 0: there is no such field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    path: &'static str,
    items: u32,
    results: u32,
    model: u32,
    usage: u32,
    timing: u32,
    matrix: u32,
    order: Order,
}

/// In which order results stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As their items.
    Items,
    /// By score, best first; at most as many as the request's field says.
    Score { top_n: u32 },
}

/// What most of them have in common.
const USUAL: Batch =
    Batch { path: "", items: 2, results: 1, model: 2, usage: 3, timing: 4, matrix: 0, order: Order::Items };

/// The methods that take batches.
static BATCHES: [Batch; 7] = [
    Batch { path: "/tamis.embedding.v1.EmbeddingService/Embed", usage: 4, timing: 5, matrix: 6, ..USUAL },
    Batch { path: "/tamis.embedding.v1.EmbeddingService/Rerank", items: 3, order: Order::Score { top_n: 4 }, ..USUAL },
    Batch { path: "/tamis.embedding.v1.EmbeddingService/CountTokens", model: 3, usage: 0, timing: 0, ..USUAL },
    Batch { path: "/tamis.classification.v1.ClassificationService/Classify", ..USUAL },
    Batch { path: "/tamis.classification.v1.ClassificationService/ClassifyZeroShot", ..USUAL },
    Batch { path: "/tamis.vision.v1.VisionService/ClassifyImages", ..USUAL },
    Batch { path: "/tamis.vision.v1.VisionService/EmbedImages", usage: 4, timing: 5, ..USUAL },
];

/// A part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Position of its first item in the batch.
    pub(crate) first: usize,
    /// How many items it has.
    pub(crate) items: usize,
}

/// A batch that is too large for one replica.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    /// In the order of the items; at least two.
    pub(crate) pieces: Vec<Piece>,
    /// All that is no item; every piece says it.
    common: Bytes,
    /// The items of all pieces, as they stand.
    items: Vec<Bytes>,
    /// Most results that the caller wants.
    top_n: usize,
}

/// The batches of a method, if it takes any.
pub(crate) fn of(path: &str) -> Option<&'static Batch> {
    BATCHES.iter().find(|batch| batch.path == path)
}

impl Batch {
    /// How many items a request has: keys and lengths are read, no item.
    ///
    /// # Errors
    /// When the request is no message.
    pub(crate) fn items(&self, mut request: impl Buf) -> Result<usize, Malformed> {
        let mut items = 0;
        while request.has_remaining() {
            let (number, kind) = decode_key(&mut request)?;
            skip_field(kind, number, &mut request, DecodeContext::default())?;
            items += usize::from(number == self.items);
        }
        Ok(items)
    }

    /// The batch in pieces of nearly equal size, at most `items_max` items each; `None` if it is one piece as it is.
    ///
    /// # Errors
    /// When the request is no message.
    pub(crate) fn split(&self, request: &Bytes, items_max: usize) -> Result<Option<Split>, Malformed> {
        let (mut common, mut items, mut top_n) = (BytesMut::new(), Vec::new(), usize::MAX);
        for field in wire::fields(request.clone()) {
            let field = field?;
            if field.number == self.items {
                items.push(field.whole);
                continue;
            }
            if matches!(self.order, Order::Score { top_n } if top_n == field.number) {
                top_n = field.value().unwrap_or_default().try_into().unwrap_or(usize::MAX);
            }
            common.extend_from_slice(&field.whole);
        }
        if items.len() <= items_max {
            return Ok(None);
        }
        let count = items.len().div_ceil(items_max);
        let bound = |piece: usize| piece * items.len() / count;
        let piece = |piece: usize| Piece { first: bound(piece), items: bound(piece + 1) - bound(piece) };
        let pieces = (0..count).map(piece).collect();
        Ok(Some(Split { pieces, common: common.freeze(), items, top_n }))
    }

    /// Which model a reply says that it comes from. Replies that differ in it do not belong together.
    pub(crate) fn model(&self, reply: &Bytes) -> Result<Bytes, Malformed> {
        let fields = wire::fields(reply.clone()).collect::<Result<Vec<_>, _>>()?;
        let model = fields.into_iter().rev().find(|field| field.number == self.model);
        Ok(model.map(|field| field.content).unwrap_or_default())
    }

    /// What pins a request to the revision that this model says of itself, appended to it. Messages merge: whatever else the
    /// request's selector says still holds.
    pub(crate) fn pin(model: Bytes) -> Result<Bytes, Malformed> {
        let model = pb::ModelInfo::decode(model)?;
        let (mut selector, mut pin) = (BytesMut::new(), BytesMut::new());
        put_content(&mut selector, REVISION, model.revision.as_bytes());
        put_content(&mut pin, SELECTOR, &selector);
        Ok(pin.freeze())
    }

    /// The reply to the whole batch, from the replies to its pieces.
    ///
    /// # Errors
    /// When one of them is no message.
    pub(crate) fn join(&self, split: &Split, replies: &[Bytes]) -> Result<Bytes, Malformed> {
        let mut joined = Joined::default();
        for (piece, reply) in split.pieces.iter().zip(replies) {
            for field in wire::fields(reply.clone()) {
                let field = field?;
                match field.number {
                    number if number == self.results => joined.result(&field, piece.first)?,
                    number if number == self.usage => joined.usage(pb::Usage::decode(field.content)?),
                    number if number == self.timing => joined.timing(pb::Timing::decode(field.content)?),
                    number if number == self.matrix => joined.matrix.extend_from_slice(&field.content),
                    _ if piece.first == 0 => joined.common.extend_from_slice(&field.whole),
                    _ => {}
                }
            }
        }
        if let Order::Score { .. } = self.order {
            joined.rank(split.top_n);
        }
        Ok(joined.write(self))
    }
}

// === impl Split ===

impl Split {
    /// Items of all pieces.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// A piece as a request of its own, in parts that share the memory of the whole.
    pub(crate) fn request(&self, piece: Piece) -> impl Iterator<Item = Bytes> {
        let items = &self.items[piece.first..piece.first + piece.items];
        std::iter::once(self.common.clone()).chain(items.iter().cloned())
    }
}

/// What is gathered from the replies.
#[derive(Default)]
struct Joined {
    common: BytesMut,
    results: Vec<Scored>,
    matrix: BytesMut,
    usage: Option<pb::Usage>,
    timing: Option<pb::Timing>,
}

/// A result, and its score if it has one.
struct Scored {
    score: Option<f32>,
    content: BytesMut,
}

impl Joined {
    /// Positions count from the start of the piece; from now on from the start of the batch.
    fn result(&mut self, field: &Field, first: usize) -> Result<(), Malformed> {
        let (mut index, mut score) = (0, None);
        for part in wire::fields(field.content.clone()) {
            let part = part?;
            match (part.number, part.kind) {
                (INDEX, WireType::Varint) => index = part.value().unwrap_or_default(),
                (SCORE, WireType::ThirtyTwoBit) => score = float(&part),
                _ => {}
            }
        }
        let mut content = BytesMut::from(&field.content[..]);
        put_number(&mut content, INDEX, index.saturating_add(first as u64));
        self.results.push(Scored { score, content });
        Ok(())
    }

    fn usage(&mut self, more: pb::Usage) {
        let sum = self.usage.get_or_insert_default();
        sum.items += more.items;
        sum.input_tokens += more.input_tokens;
        sum.input_bytes += more.input_bytes;
        sum.input_pixels += more.input_pixels;
    }

    /// The pieces ran beside each other: the slowest one's times are the batch's, so that they still sum to the total.
    fn timing(&mut self, more: pb::Timing) {
        let length = |timing: &pb::Timing| timing.total.map_or((0, 0), |total| (total.seconds, total.nanos));
        let Some(slowest) = &mut self.timing else {
            self.timing = Some(more);
            return;
        };
        let items = slowest.items.saturating_add(more.items);
        if length(&more) > length(slowest) {
            *slowest = more;
        }
        slowest.items = items;
    }

    /// Best first; equal scores, and those without, as they came.
    fn rank(&mut self, top_n: usize) {
        self.results.sort_by(|a, b| match (a.score, b.score) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        });
        let mut scored = 0;
        self.results.retain(|result| {
            scored += usize::from(result.score.is_some());
            result.score.is_none() || scored <= top_n
        });
    }

    fn write(self, batch: &Batch) -> Bytes {
        let mut message = self.common;
        for result in &self.results {
            put_content(&mut message, batch.results, &result.content);
        }
        if !self.matrix.is_empty() {
            put_content(&mut message, batch.matrix, &self.matrix);
        }
        if let Some(usage) = self.usage {
            put_content(&mut message, batch.usage, &usage.encode_to_vec());
        }
        if let Some(timing) = self.timing {
            put_content(&mut message, batch.timing, &timing.encode_to_vec());
        }
        message.freeze()
    }
}

/// The value of a float field, whose key takes one byte as well.
fn float(field: &Field) -> Option<f32> {
    let mut value = field.whole.slice(1..);
    (value.len() == 4).then(|| value.get_f32_le())
}

#[cfg(test)]
mod tests;
