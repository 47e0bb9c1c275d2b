//! A batch that is too large for one replica, on its way to several.
//!
//! Its pieces go out a few at a time, so that it fills the replicas without filling their queues: a single call behind it
//! waits for pieces, not for the batch. All pieces belong to one future; whoever drops it cancels them. A piece that fails
//! as a whole fails the batch, with the status that the replica gave.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tonic::Code;

use crate::{
    batch::{self, Batch, Piece},
    refuse::Refusal,
    replay::{Replay, Reserved},
    reply::{self, Reply},
    unary::Unary,
    wire::{self, Malformed},
};

/// Pieces that are under way for each ready replica: one that is computed, and one that comes after it.
const PIECES_PER_REPLICA: usize = 2;

/// A batch in pieces.
pub(crate) struct Split<'a> {
    call: &'a Unary<'a>,
    batch: &'static Batch,
    split: batch::Split,
    /// Memory of the pieces.
    reserved: std::sync::Arc<Reserved>,
}

/// What became of a piece.
enum Outcome {
    /// The reply to the piece at this place.
    Message(usize, Bytes, Reserved),
    /// A status that is not OK.
    Failed(Reply),
}

/// The call's batch in pieces; `None` if it is no batch or fits one replica.
///
/// # Errors
/// When it has more items than may be, or its pieces do not fit in memory.
pub(crate) fn split<'a>(call: &'a Unary<'a>, message: &Replay) -> Result<Option<Split<'a>>, Refusal> {
    let bounds = call.upstream.batches;
    let Some(batch) = call.method.batch else { return Ok(None) };
    // An item has two bytes at least: most requests need no look. What is compressed or no message is the replica's to
    // judge.
    if message.bytes() / 2 <= bounds.split_items {
        return Ok(None);
    }
    let Some(Ok(items)) = message.reader().map(|message| batch.items(message)) else { return Ok(None) };
    if items > bounds.items_max {
        return Err(Refusal::TooManyItems { items, items_max: bounds.items_max });
    }
    if items <= bounds.split_items {
        return Ok(None);
    }
    let mut reserved = Reserved::none_of(&call.mesh.held);
    if !reserved.add(message.bytes()) {
        return Err(Refusal::Full { what: "bytes of held messages", max: reserved.bytes_max() });
    }
    let Some((whole, _whole)) = message.clone().into_message() else { return Ok(None) };
    let split = batch.split(&whole, bounds.split_items).map_err(|_| garbled())?;
    Ok(split.map(|split| Split { call, batch, split, reserved: reserved.into() }))
}

impl Split<'_> {
    /// Carries all pieces to replicas and joins their replies.
    pub(crate) async fn carry(&self) -> Result<Reply, Refusal> {
        let pieces = &self.split.pieces;
        let mut replies = vec![Bytes::new(); pieces.len()];
        // What the replies hold of the memory, until they are joined.
        let mut held = Vec::new();
        let all = pieces.iter().cloned().enumerate().collect();
        if let Some(failed) = self.gather(all, &mut replies, &mut held).await? {
            return Ok(failed);
        }
        // While a model is swapped, replicas may answer from different revisions. Both are loaded then: the first piece's
        // is asked of the others.
        let models = replies.iter().map(|reply| self.batch.model(reply)).collect::<Result<Vec<_>, Malformed>>();
        let models = models.map_err(|_| garbled())?;
        let differs = |index: &usize| models[*index] != models[0];
        let pin = |index: usize| Ok((index, Batch::pin(&pieces[index], models[0].clone())?));
        let pinned = (0..pieces.len()).filter(differs).map(pin).collect::<Result<Vec<_>, Malformed>>();
        let again = pinned.map_err(|_| garbled())?;
        if let Some(failed) = self.gather(again, &mut replies, &mut held).await? {
            return Ok(failed);
        }
        let joined = self.batch.join(&self.split, &replies).map_err(|_| garbled())?;
        let bytes_max = chassis::units::bytes(self.call.mesh.settings.server.message_bytes_max);
        let prefix = wire::prefix(joined.len()).filter(|_| joined.len() <= bytes_max);
        let prefix = prefix.ok_or(Refusal::ReplyTooLarge { bytes_max: bytes_max as u64 })?;
        Ok(Reply::whole(vec![prefix, joined]))
    }

    /// Carries pieces, a few at a time, and puts each reply in its place; ends with the first that fails.
    async fn gather(
        &self,
        pieces: Vec<(usize, Piece)>,
        replies: &mut [Bytes],
        held: &mut Vec<Reserved>,
    ) -> Result<Option<Reply>, Refusal> {
        let at_once = PIECES_PER_REPLICA * (*self.call.upstream.ready.borrow()).max(1);
        let calls: Vec<_> = pieces.into_iter().map(|(index, piece)| self.piece(index, piece)).collect();
        let mut running = stream::iter(calls).buffer_unordered(at_once);
        while let Some(outcome) = running.next().await {
            match outcome? {
                Outcome::Message(index, message, reserved) => {
                    replies[index] = message;
                    held.push(reserved);
                }
                Outcome::Failed(reply) => return Ok(Some(reply)),
            }
        }
        Ok(None)
    }

    async fn piece(&self, index: usize, piece: Piece) -> Result<Outcome, Refusal> {
        let share = |units: u32| (u64::from(units) * piece.items as u64 / self.split.items as u64).max(1);
        let units = self.call.units.map(|units| u32::try_from(share(units)).unwrap_or(u32::MAX));
        let (reply, flight) = self.call.send(Replay::part(&piece.message, &self.reserved), units).await?;
        if reply.failure().is_some() {
            return Ok(Outcome::Failed(reply));
        }
        let mut reserved = Reserved::none_of(&self.call.mesh.held);
        let keep = |bytes| match reserved.add(bytes) {
            true => Ok(()),
            false => Err(Refusal::Full { what: "bytes of held messages", max: reserved.bytes_max() }),
        };
        let (frames, trailers) = reply.collect(flight, keep).await?;
        if reply::code(&trailers) != Code::Ok {
            return Ok(Outcome::Failed(Reply::ended(trailers)));
        }
        let message = reply::message(&frames).ok_or_else(garbled)?;
        Ok(Outcome::Message(index, message, reserved))
    }
}

fn garbled() -> Refusal {
    Refusal::Engine("the reply to a part of the batch is not one message")
}
