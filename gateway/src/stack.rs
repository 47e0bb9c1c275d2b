//! The way of a call through the gateway, from its headers to its reply, in a straight line.
//!
//! Well-formed? Who calls? May they? Is there such a method? Until when? Is there room? Then the replicas, or a service of
//! the gateway's own. Each step says no with a `Refusal`, and nothing is read of the body before all have passed.

use std::sync::Arc;

use chassis::{deadline, spiffe::NotSpiffe, trace::TraceContext, units::bytes};
use http::{Request, Response, request::Parts};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::{
    balance::Work,
    call::{Call, Message, Patience},
    content::Use,
    cutoff::{Cutoff, Deadline},
    fanout,
    flight::{Flight, Plan},
    identify::Caller,
    mesh::{LocalService, Mesh, Route, Target},
    metrics::Record,
    models::Worker,
    progress::Progress,
    refuse::Refusal,
    replay::hold,
    reply::{Reply, ReplyBody},
    request,
    route::Shape,
    unary::Unary,
    upstream::{RequestBody, Upstream},
};

/// Answers the calls of one connection.
pub(crate) struct Stack {
    pub(crate) mesh: Arc<Mesh>,
    /// Whose connections to replicas are used.
    pub(crate) worker: usize,
    pub(crate) caller: Result<Caller, NotSpiffe>,
}

/// A reply and what ends it early.
struct Answer {
    reply: Reply,
    cutoff: Cutoff,
    flight: Option<Flight>,
}

/// A call that may go on.
struct Admitted<'a> {
    route: &'a Route,
    deadline: Option<Deadline>,
    /// With the headers for a replica.
    head: Parts,
    units: Option<u32>,
}

impl Stack {
    /// Answers a call.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<ReplyBody> {
        let (head, body) = request.into_parts();
        let trace = TraceContext::of(&head.headers);
        let route = self.mesh.route(head.uri.path());
        let span = self.span(route, &trace, None);
        let mut record = Record::begin(route.map_or(&self.mesh.unknown, |route| &route.metrics), span.clone());
        let answer = async {
            let admitted = self.admit(route, head, &trace, &mut record)?;
            match &admitted.route.target {
                Target::Local(service) => self.local(service.clone(), admitted, body).await,
                Target::Upstream(upstream) => self.upstream(upstream, admitted, body, &mut record).await,
                Target::FanOut => Arc::clone(&self).fan_out(admitted, body).await,
            }
        };
        match answer.instrument(span).await {
            Ok(Answer { reply, cutoff, flight }) => reply.into_response(cutoff, flight, record),
            Err(refusal) => {
                record.refused(&refusal);
                Reply::refusal(&refusal).into_response(Cutoff::default(), None, record)
            }
        }
    }

    /// The span of a call: a client's own, or that of the fan-out's step at this place.
    pub(crate) fn span(&self, route: Option<&Route>, trace: &TraceContext, step: Option<usize>) -> tracing::Span {
        // At debug level: it is the life of a request, and at info level it would cost every call its formatting.
        tracing::debug_span!(
            "call",
            service = route.map(|route| &*route.method.service),
            method = route.map(|route| &*route.method.name),
            caller = self.caller.as_ref().ok().map(|caller| caller.identity.as_str()),
            step,
            trace_id = trace.trace_id(),
            replica = tracing::field::Empty,
            attempt = tracing::field::Empty,
        )
    }

    /// Everything that is asked before the body is read.
    fn admit<'a>(
        &'a self,
        route: Option<&'a Route>,
        mut head: Parts,
        trace: &TraceContext,
        record: &mut Record,
    ) -> Result<Admitted<'a>, Refusal> {
        request::check(&head)?;
        let caller = self.caller.as_ref().map_err(|_| Refusal::NoIdentity)?;
        let route = permit(caller, route, head.uri.path())?;
        let deadline = self.deadline(&head, route)?;
        record.takes(self.mesh.admit()?);
        let units = request::units(&head.headers);
        request::prepare(&mut head.headers, &caller.header, trace);
        Ok(Admitted { route, deadline, head, units })
    }

    /// Every unary call has a deadline. A stream has the one that its client sets: a watch without end is no mistake.
    /// A stream to replicas has it uncut, as they do: bulk work takes its time.
    fn deadline(&self, head: &Parts, route: &Route) -> Result<Option<Deadline>, Refusal> {
        let header = head.headers.get(deadline::HEADER).map(http::HeaderValue::as_bytes);
        let malformed = |malformed: deadline::Malformed| Refusal::Malformed(malformed.to_string());
        let timeout = match (route.method.shape, header, &route.target) {
            (Shape::Streaming, None, _) => return Ok(None),
            (Shape::Streaming, Some(header), Target::Upstream(_)) => deadline::parse(header).map_err(malformed)?,
            _ => self.mesh.settings.server.deadlines().timeout(header).map_err(malformed)?,
        };
        // Beyond what an instant can say there is none.
        Ok(Instant::now().checked_add(timeout).map(|at| Deadline { at, timeout }))
    }

    async fn upstream(
        &self,
        upstream: &Arc<Upstream>,
        Admitted { route, deadline, head, units }: Admitted<'_>,
        body: Incoming,
        record: &mut Record,
    ) -> Result<Answer, Refusal> {
        record.is_to(upstream)?;
        let settings = &self.mesh.settings;
        let (mesh, method, headers, worker) = (&*self.mesh, &*route.method, &head.headers, self.worker);
        let (reply, flight) = match method.shape {
            Shape::Streaming => {
                let (work, held_bytes_max) = (Work::new(units, 0), bytes(settings.hold.reply_bytes_max));
                let plan = Plan { method, upstream, headers, deadline, work, worker, held_bytes_max };
                let call = Call::new(plan, Patience::of(&settings.retry), &mesh.metrics);
                match (method.content == Some(Use::Uploads)).then(|| mesh.library.copy()) {
                    None => call.run(Message::Passing(RequestBody::Pass(body))).await?,
                    Some(copied) => {
                        let answer = call.run(Message::Passing(RequestBody::Copy(copied.from(body)))).await?;
                        copied.settle(&answer.0, mesh.library.contents())?;
                        answer
                    }
                }
            }
            Shape::Unary => {
                let bytes_max = bytes(settings.server.message_bytes_max);
                let replay = within(deadline, hold(body, bytes_max, &mesh.held)).await?;
                let replay = replay.map_err(|not_held| not_held.into_refusal(bytes_max))?;
                let progress = &Progress::default();
                let unary = Unary { mesh, method, upstream, headers, deadline, units, worker, progress };
                unary.carry(replay).await?
            }
        };
        let cutoff = if reply.is_whole() { Cutoff::default() } else { Cutoff::at(deadline) };
        Ok(Answer { reply, cutoff, flight })
    }

    async fn fan_out(
        self: Arc<Self>,
        Admitted { route, deadline, head, .. }: Admitted<'_>,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let call = fanout::Arrival { shape: route.method.shape, headers: head.headers, deadline };
        let (reply, deadline) = fanout::answer(Arc::clone(&self), call, body).await?;
        let cutoff = if reply.is_whole() { Cutoff::default() } else { Cutoff::at(Some(deadline)) };
        Ok(Answer { reply, cutoff, flight: None })
    }

    async fn local(
        &self,
        service: LocalService,
        Admitted { route, deadline, mut head, .. }: Admitted<'_>,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        head.extensions.insert(Worker(self.worker));
        if let Some(deadline) = deadline {
            head.extensions.insert(deadline);
        }
        let request = Request::from_parts(head, tonic::body::Body::new(body));
        let response = within(deadline, service.oneshot(request)).await?.unwrap_or_else(|never| match never {});
        let cutoff = match route.method.shape {
            Shape::Unary => Cutoff::at(deadline),
            Shape::Streaming => Cutoff::at(deadline).or_drain(&self.mesh.drain),
        };
        Ok(Answer { reply: Reply::local(response), cutoff, flight: None })
    }
}

/// Whether a caller may call the method at a path, and whether there is one.
pub(crate) fn permit<'a>(caller: &Caller, route: Option<&'a Route>, path: &str) -> Result<&'a Route, Refusal> {
    // Before the route: who may call nothing here does not learn what there is.
    caller.authorize(path)?;
    route.ok_or_else(|| Refusal::UnknownMethod { path: path.to_owned() })
}

/// Takes a step of a call before its deadline.
pub(crate) async fn within<F: Future>(deadline: Option<Deadline>, step: F) -> Result<F::Output, Refusal> {
    match deadline {
        Some(Deadline { at, timeout }) => timeout_at(at, step).await.map_err(|_| Refusal::Late { timeout }),
        None => Ok(step.await),
    }
}
