//! A batch that is too large for one replica, on its way to several.
//!
//! Its pieces go out a few at a time, so that it fills the replicas without filling their queues: a single call behind it
//! waits for pieces, not for the batch. All pieces belong to one future; whoever drops it cancels them. A piece that is
//! refused for a full queue is sent again after a pause, since the batch would lose all that was computed; any other
//! failure of a piece fails the batch, with the status that the replica gave.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tonic::Code;

use crate::{
    batch::{self, Batch},
    progress::{Progress, Stage},
    refuse::Refusal,
    replay::{Replay, Reserved, kept},
    reply::{self, Reply},
    retry::{Failure, Pushback},
    unary::Unary,
    wire::{self, Malformed},
};

/// Pieces of one batch that are under way for each ready replica: one that is computed, and one that comes after it.
const PIECES_PER_REPLICA: usize = 2;
/// How often a piece is sent again that was refused for a full queue, and the pause before the first time, which doubles: 3 s
/// in all, within the deadline.
const REFUSALS_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(50);
/// How often a piece is sent that asks for a revision: a replica that a swap has not reached yet may get it first.
const PINNED_ATTEMPTS_MAX: u32 = 4;

/// A batch in pieces.
pub(crate) struct Split<'a> {
    call: &'a Unary<'a>,
    batch: &'static Batch,
    split: batch::Split,
    /// Memory of the request, if it had to be joined.
    _reserved: Reserved,
}

/// What became of a piece.
enum Outcome {
    /// The reply to the piece at this place.
    Message(usize, Bytes, Reserved),
    /// A status that is not OK.
    Failed(Reply),
}

/// Replies to the pieces, and their memory.
#[derive(Clone)]
struct Replies {
    messages: Vec<Bytes>,
    held: Vec<Arc<Reserved>>,
    bytes: usize,
}

/// Whether the call brings a batch that is too large for one replica; nothing but keys and lengths is read.
///
/// # Errors
/// When there are more than may be.
pub(crate) fn is_due(call: &Unary<'_>, message: &Replay) -> Result<bool, Refusal> {
    let bounds = call.upstream.batches;
    // An item has two bytes at least: most requests need no look. What is compressed or no message is the replica's to
    // judge.
    let large = call.method.batch.filter(|_| message.bytes() / 2 > bounds.split_items);
    let items = large.and_then(|batch| batch.items(message.reader()?).ok()).unwrap_or(0);
    if items > bounds.items_max {
        return Err(Refusal::TooManyItems { items, items_max: bounds.items_max });
    }
    Ok(items > bounds.split_items)
}

/// A batch that is too large for one replica, in pieces; `None` if it cannot be taken apart.
///
/// # Errors
/// When it does not fit in memory.
pub(crate) fn split<'a>(call: &'a Unary<'a>, message: &Replay) -> Result<Option<Split<'a>>, Refusal> {
    let Some(batch) = call.method.batch else { return Ok(None) };
    let mut reserved = Reserved::none_of(&call.mesh.held);
    if !reserved.add(message.bytes()) {
        return Err(Refusal::Full { what: "bytes of held messages", max: reserved.bytes_max() });
    }
    let Some((whole, _whole)) = message.clone().into_message() else { return Ok(None) };
    let split = batch.split(&whole, call.upstream.batches.split_items).map_err(|_| garbled())?;
    Ok(split.map(|split| Split { call, batch, split, _reserved: reserved }))
}

impl Split<'_> {
    /// Carries all pieces to replicas and joins their replies.
    pub(crate) async fn carry(&self) -> Result<Reply, Refusal> {
        self.call.progress.stage(Stage::Running);
        let none = Replies { messages: vec![Bytes::new(); self.split.pieces.len()], held: Vec::new(), bytes: 0 };
        let replies = match self.gather((0..self.split.pieces.len()).collect(), None, none).await? {
            Ok(replies) => replies,
            Err(failed) => return Ok(failed),
        };
        match self.agree(replies).await? {
            Ok(replies) => self.join(&replies),
            Err(failed) => Ok(failed),
        }
    }

    /// Makes all replies come from one revision: while a model is swapped, replicas answer from different ones. The pieces
    /// that differ are asked again for the revision of another piece's reply, the last one's first, which is more likely
    /// the one that stays.
    async fn agree(&self, replies: Replies) -> Result<Result<Replies, Reply>, Refusal> {
        let models =
            replies.messages.iter().map(|reply| self.batch.model(reply)).collect::<Result<Vec<_>, Malformed>>();
        let models = models.map_err(|_| garbled())?;
        let mut wanted: Vec<&Bytes> = Vec::new();
        for model in models.iter().rev() {
            if !wanted.contains(&model) {
                wanted.push(model);
            }
        }
        if wanted.len() == 1 {
            return Ok(Ok(replies));
        }
        for model in wanted {
            let pin = Batch::pin(model.clone()).map_err(|_| garbled())?;
            let differ = (0..models.len()).filter(|index| models[*index] != *model).collect();
            match self.gather(differ, Some(&pin), replies.clone()).await? {
                // Nobody has it any more.
                Err(failed) if is_other_revision(&failed) => {}
                agreed => return Ok(agreed),
            }
        }
        Err(Refusal::Mixed { service: self.call.upstream.name.to_string() })
    }

    fn join(&self, replies: &Replies) -> Result<Reply, Refusal> {
        let joined = self.batch.join(&self.split, &replies.messages).map_err(|_| garbled())?;
        let bytes_max = self.bytes_max();
        let prefix = wire::prefix(joined.len()).filter(|_| joined.len() <= bytes_max);
        let prefix = prefix.ok_or(Refusal::ReplyTooLarge { bytes_max: bytes_max as u64 })?;
        // As much as it takes, for as long as it takes the client to read it.
        let mut reserved = Reserved::none_of(&self.call.mesh.gathered);
        if !reserved.add(joined.len()) {
            return Err(full(&reserved));
        }
        Ok(Reply::whole(vec![prefix, kept(joined, &Arc::new(reserved))]))
    }

    /// Carries pieces, a few at a time, and puts each reply in its place; ends with the first that fails.
    async fn gather(
        &self,
        indices: Vec<usize>,
        pin: Option<&Bytes>,
        mut replies: Replies,
    ) -> Result<Result<Replies, Reply>, Refusal> {
        let at_once = PIECES_PER_REPLICA * (*self.call.upstream.ready.borrow()).max(1);
        let calls: Vec<_> = indices.into_iter().map(|index| self.piece(index, pin)).collect();
        let mut running = stream::iter(calls).buffer_unordered(at_once);
        while let Some(outcome) = running.next().await {
            match outcome? {
                Outcome::Message(index, message, reserved) => {
                    replies.bytes = replies.bytes + message.len() - replies.messages[index].len();
                    replies.messages[index] = message;
                    replies.held.push(Arc::new(reserved));
                    // Before more is computed for a reply that will not fit.
                    if replies.bytes > self.bytes_max() {
                        return Err(Refusal::ReplyTooLarge { bytes_max: self.bytes_max() as u64 });
                    }
                }
                Outcome::Failed(reply) => return Ok(Err(reply)),
            }
        }
        Ok(Ok(replies))
    }

    /// One piece, sent again as long as that may help.
    async fn piece(&self, index: usize, pin: Option<&Bytes>) -> Result<Outcome, Refusal> {
        let (mut pause, mut refusals, mut others) = (PAUSE, 0, 0);
        loop {
            let outcome = self.attempt(index, pin).await;
            let is_full = match &outcome {
                Ok(Outcome::Failed(reply)) => {
                    matches!(reply.failure(), Some(Failure::Status(Code::ResourceExhausted, Pushback::Later)))
                }
                Err(refusal) => matches!(refusal, Refusal::Full { .. }),
                Ok(Outcome::Message(..)) => false,
            };
            let is_other = matches!(&outcome, Ok(Outcome::Failed(reply)) if is_other_revision(reply));
            if is_full && refusals < REFUSALS_MAX {
                refusals += 1;
                tokio::time::sleep(pause).await;
                pause *= 2;
            } else if pin.is_some() && is_other && others < PINNED_ATTEMPTS_MAX {
                others += 1;
            } else {
                return outcome;
            }
        }
    }

    async fn attempt(&self, index: usize, pin: Option<&Bytes>) -> Result<Outcome, Refusal> {
        let Self { call, split, .. } = self;
        let piece = split.pieces[index];
        let share = |units: u32| (u64::from(units) * piece.items as u64 / split.items() as u64).max(1);
        let units = call.units.map(|units| u32::try_from(share(units)).unwrap_or(u32::MAX));
        let parts: Vec<_> = split.request(piece).chain(pin.cloned()).collect();
        let length = parts.iter().map(Bytes::len).sum();
        let prefix = wire::prefix(length).ok_or_else(garbled)?;
        let message = Replay::of_pieces(std::iter::once(prefix).chain(parts), &call.mesh.held);
        let message = message.map_err(|not_held| not_held.into_refusal(self.bytes_max()))?;
        let progress = Progress::default();
        let sent = call.send(message, units, &progress).await;
        call.progress.at_least(progress.attempts());
        let (reply, flight) = sent?;
        if reply.failure().is_some() {
            return Ok(Outcome::Failed(reply));
        }
        let mut reserved = Reserved::none_of(&call.mesh.gathered);
        let keep = |bytes| if reserved.add(bytes) { Ok(()) } else { Err(full(&reserved)) };
        let (frames, trailers) = reply.collect(flight, keep).await?;
        if reply::code(&trailers) != Code::Ok {
            return Ok(Outcome::Failed(Reply::ended(trailers)));
        }
        let message = reply::message(&frames).ok_or_else(garbled)?;
        Ok(Outcome::Message(index, message, reserved))
    }

    fn bytes_max(&self) -> usize {
        chassis::units::bytes(self.call.mesh.settings.server.message_bytes_max)
    }
}

/// The model is not loaded in the revision that was asked for.
fn is_other_revision(reply: &Reply) -> bool {
    matches!(reply.failure(), Some(Failure::Status(Code::FailedPrecondition | Code::NotFound, _)))
}

fn full(reserved: &Reserved) -> Refusal {
    Refusal::Full { what: "bytes of gathered replies", max: reserved.bytes_max() }
}

fn garbled() -> Refusal {
    Refusal::Engine("the reply to a part of the batch is not one message")
}
