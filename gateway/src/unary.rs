//! One unary call from its whole message to its reply.
//!
//! A client's own call and a step of a fan-out both come through here: what is done for the one holds for the other. Only
//! what the gateway asks for itself (`models.rs`) does not.

use std::sync::Arc;

use chassis::units::bytes;
use http::HeaderMap;

use crate::{
    balance::Work,
    call::{Call, Message, Patience},
    content::Use,
    cutoff::Deadline,
    flight::{Flight, Plan},
    mesh::Mesh,
    progress::Progress,
    refuse::Refusal,
    replay::Replay,
    reply::Reply,
    route::Method,
    split,
    stack::within,
    upstream::Upstream,
};

/// Where a unary call comes from and where it goes.
pub(crate) struct Unary<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) method: &'a Method,
    pub(crate) upstream: &'a Arc<Upstream>,
    /// Already those for a replica.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) deadline: Option<Deadline>,
    /// The client's estimate of the work.
    pub(crate) units: Option<u32>,
    /// Whose connections are used.
    pub(crate) worker: usize,
    pub(crate) progress: &'a Progress,
}

impl Unary<'_> {
    /// Carries the call, which has been admitted, to a replica and brings the reply; while more of that comes, the call
    /// holds the flight.
    pub(crate) async fn carry(&self, mut message: Replay) -> Result<(Reply, Option<Flight>), Refusal> {
        // Before the images are put in: how many items there are does not change by that.
        let is_split = split::is_due(self, &message)?;
        if self.method.content == Some(Use::Names) {
            message = self.mesh.library.resolve(message)?;
        }
        let batch = if is_split { split::split(self, &message)? } else { None };
        match batch {
            None => self.send(message, self.units, self.progress).await,
            Some(batch) => within(self.deadline, batch.carry()).await?.map(|reply| (reply, None)),
        }
    }

    /// Sends it as it is.
    pub(crate) async fn send(
        &self,
        message: Replay,
        units: Option<u32>,
        progress: &Progress,
    ) -> Result<(Reply, Option<Flight>), Refusal> {
        let settings = &self.mesh.settings;
        let plan = Plan {
            method: self.method,
            upstream: self.upstream,
            headers: self.headers,
            deadline: self.deadline,
            work: Work::new(units, message.bytes()),
            worker: self.worker,
            held_bytes_max: bytes(settings.hold.reply_bytes_max),
        };
        let call = Call::new(plan, Patience::of(&settings.retry), &self.mesh.metrics).told_to(progress);
        call.run(Message::Held(message)).await
    }
}
