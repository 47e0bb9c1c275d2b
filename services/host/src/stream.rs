//! Calls that stream: batches in, answers out, over one call.
//!
//! A service says what its batches are ([`Batches`]) and how its messages read, and [`run`] does the rest: the first
//! message must be the config, the sequence must rise, at most [`crate::HostSettings::stream_batches_max`] batches are
//! in flight, and while they are nothing is read, so that HTTP/2 flow control slows the client down. A stream on which nothing
//! happens for [`crate::HostSettings::stream_idle_max`] ends. Answers go out in
//! order or as they come. A batch that fails as a whole has its error in its answer, and the stream goes on. The
//! client's deadline cuts the stream, a client that goes takes what waits of it out of the queue, and a server that drains
//! or is to unload the stream's model reads no more, answers what it has read and sends the client elsewhere.
//!
//! ```text
//! async fn embed_stream(&self, request: Request<Streaming<pb::EmbedStreamRequest>>) -> Result<.., Status> {
//!     Ok(host::stream::run(&self.host, request, read, move |config| Ok(Opened { batches, unordered })))
//! }
//! ```

mod driver;

use std::sync::Arc;

use chassis::{
    load::{Cost, Meter},
    refusal::Refusal,
};
use proto::common::v1 as pb;
use tonic::{Request, Response, Streaming, codegen::BoxStream};

use self::driver::{Driver, Terms};
use crate::{Call, Host, Hosted};

/// The answers of a stream, as tonic sends them.
pub type Answers<R> = BoxStream<R>;

/// A message of the client's side: the `oneof` of the contract.
pub enum Message<C, I> {
    /// What holds for the whole stream; the first message and no other.
    Config(C),
    /// A batch.
    Batch(Batch<I>),
}

/// A batch as it came.
pub struct Batch<I> {
    /// The client's number of it.
    pub sequence: u64,
    /// What it carries.
    pub items: I,
}

/// The answer to a batch.
pub struct Answer<R> {
    /// As it goes to the client.
    pub response: R,
    /// What it cost, for the load report at the end of the stream.
    pub cost: Cost,
}

/// What a service makes of a stream's config.
pub struct Opened<B> {
    /// Answers the batches.
    pub batches: B,
    /// Answers go out as soon as they are ready, and not in the order of the batches.
    pub unordered: bool,
}

/// Answers the batches of one stream. Several run at once, so what they share is behind `&self`.
pub trait Batches: Send + Sync + 'static {
    /// What a batch carries.
    type Items: Send + 'static;
    /// A message of the server's side.
    type Response: Send + 'static;

    /// Computes a batch; [`Host::compute_in_turn`] waits where [`Host::compute`] would refuse.
    ///
    /// # Errors
    /// When the batch fails as a whole. Only a deadline that has passed and a server that drains end the stream too.
    fn answer(
        &self,
        batch: Batch<Self::Items>,
        call: Call,
    ) -> impl Future<Output = Result<Answer<Self::Response>, Refusal>> + Send;

    /// The answer to a batch that failed as a whole.
    fn failed(&self, sequence: u64, error: pb::ItemError) -> Self::Response;

    /// Whether the model is still there for new calls. One that is not is freed when the last stream has let go of it.
    fn are_current(&self) -> bool;

    /// Adds what only the stream's first response says.
    fn introduce(&self, first: &mut Self::Response);
}

/// Answers a stream. `read` gives the contract's `oneof`, `None` where it is not set; `open` parses the config.
///
/// The response begins at once, before the config has come: many clients send nothing until it does. So whatever is wrong
/// stands in the trailers.
pub fn run<M: Hosted, R, C, B>(
    host: &Host<M>,
    request: Request<Streaming<R>>,
    read: fn(R) -> Option<Message<C, B::Items>>,
    open: impl FnOnce(C) -> Result<Opened<B>, Refusal> + Send + 'static,
) -> Response<Answers<B::Response>>
where
    R: Send + 'static,
    C: Send + 'static,
    B: Batches,
{
    let meter = Meter::default();
    let terms = Terms {
        call: Call::begin_stream(request.extensions()),
        batches_max: host.stream_batches_max,
        idle_max: host.stream_idle_max,
        readiness: host.readiness.subscribe(),
        changes: host.catalog.changes(),
        meter: meter.clone(),
    };
    let driver = Driver::new(request.into_inner(), read, Box::new(open), terms);
    let mut response = Response::new(driver.into_answers());
    // The layer that reports reads it when the trailers go.
    response.extensions_mut().insert(meter);
    response
}

/// A batch on its way: what a task of the driver gives back.
struct Finished<R> {
    sequence: u64,
    answer: Result<Answer<R>, Refusal>,
}

/// A batch's task.
async fn compute<B: Batches>(batches: Arc<B>, batch: Batch<B::Items>, call: Call) -> Finished<B::Response> {
    let sequence = batch.sequence;
    Finished { sequence, answer: batches.answer(batch, call).await }
}
