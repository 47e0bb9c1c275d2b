//! The replicas whose models are asked for or changed, and a connection to the admin port of each.

use std::{io, path::PathBuf};

use anyhow::{Context as _, bail};
use chassis::{
    spiffe::SpiffeId,
    tls::{Credentials, TlsSettings},
    units::Span,
};
use engine::{Store, Task};
use http::Uri;
use hyper_util::rt::TokioIo;
use proto::model::v1::{
    self as pb, model_admin_service_client::ModelAdminServiceClient, model_service_client::ModelServiceClient,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{advice::Advice, call::failure, home::Home, mesh::Record, role::Role};

/// Which replicas, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Service whose replicas are meant: embedding, classification or vision [default: that of the model's task].
    #[arg(long, value_name = "ROLE", value_parser = service)]
    service: Option<Role>,
    /// Admin port of a replica elsewhere, host:port; may be repeated [default: all replicas of the mesh on this machine].
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<String>,
    /// SPIFFE identity that the replicas must prove [default: that of the service].
    #[arg(long, value_name = "ID")]
    identity: Option<SpiffeId>,
    /// Deadline for each replica.
    #[arg(long, value_name = "TIME", default_value = "2m")]
    timeout: Span,
    /// Certificate of the authority to trust [default: ca.pem in the data directory].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate of an admin [default: client-dev.pem in the data directory].
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate [default: client-dev.key, or the key beside --cert].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// A replica that can be reached.
pub(super) struct Replica {
    pub(super) name: String,
    address: String,
    identity: SpiffeId,
    credentials: Credentials,
    timeout: Span,
}

impl Target {
    /// The replicas; of the service that this model belongs to, unless the flags say otherwise; of all services where
    /// there is no model.
    pub(super) fn replicas(&self, model: Option<&str>, home: &Home) -> anyhow::Result<Vec<Replica>> {
        let role = match (self.service, model) {
            (Some(role), _) => Some(role),
            (None, Some(model)) => Some(role(&Store::new(home.data()), model)?),
            (None, None) => None,
        };
        let credentials = self.credentials(home)?;
        let replica = |name: &str, address: String, role: Role| {
            let identity = match &self.identity {
                Some(identity) => identity.clone(),
                None => role.spiffe_id().parse()?,
            };
            let (credentials, name) = (credentials.clone(), name.to_owned());
            anyhow::Ok(Replica { name, address, identity, credentials, timeout: self.timeout })
        };
        if !self.admin.is_empty() {
            let Some(role) = role.or(self.identity.as_ref().map(|_| Role::Embedding)) else {
                bail!(Advice::new("nothing says who must answer at --admin", "name --service or --identity"));
            };
            return self.admin.iter().map(|address| replica(address, address.clone(), role)).collect();
        }
        let record = Record::read(home).ok_or_else(|| {
            let help = "start one with `tamis up`, or name the admin ports of replicas elsewhere with --admin";
            Advice::new("no mesh runs on this machine", help)
        })?;
        let members = record.processes.into_iter();
        let members = members.filter(|member| role.map_or(member.role != Role::Gateway, |role| member.role == role));
        let replicas = members.map(|member| {
            let address = crate::up::reachable(member.addresses.admin).to_string();
            replica(&member.name, address, member.role)
        });
        let replicas = replicas.collect::<anyhow::Result<Vec<_>>>()?;
        if replicas.is_empty() {
            let role = role.map_or("any service", Role::name);
            let help = "`tamis up --replicas` says how many there are; --service names another service";
            bail!(Advice::new(format!("the mesh on this machine has no replica of {role}"), help));
        }
        Ok(replicas)
    }

    fn credentials(&self, home: &Home) -> anyhow::Result<Credentials> {
        let default = |name: &str| home.certs().join(name);
        let beside = self.cert.as_ref().map(|cert| cert.with_extension("key"));
        let text = |path: PathBuf| path.display().to_string();
        let settings = TlsSettings {
            ca: text(self.ca.clone().unwrap_or_else(|| default("ca.pem"))),
            cert: text(self.cert.clone().unwrap_or_else(|| default("client-dev.pem"))),
            key: text(self.key.clone().or(beside).unwrap_or_else(|| default("client-dev.key"))),
        };
        Credentials::load(&settings).with_context(|| {
            let help = "`tamis up` and `tamis certs init` make some; --cert, --key and --ca name others";
            Advice::new("cannot use the certificates", help)
        })
    }
}

/// Connections to a replica's admin port.
pub(super) struct Open<'a> {
    channel: Channel,
    replica: &'a Replica,
}

impl Replica {
    /// Connects and proves both identities.
    pub(super) async fn open(&self) -> anyhow::Result<Open<'_>> {
        let address = &self.address;
        let connector = self.credentials.connector(&self.identity)?;
        let connected = tokio::time::timeout(self.timeout.0, connector.connect(address)).await;
        let stream = connected.map_err(io::Error::from).flatten();
        let stream = stream.map_err(|error| failure::connection(error, address))?;
        let mut stream = Some(TokioIo::new(stream));
        let once = tower::service_fn(move |_| {
            std::future::ready(stream.take().ok_or_else(|| io::Error::other("the connection was lost")))
        });
        // The scheme of the connection says that tonic adds no TLS of its own; callers are told the one that holds.
        let uri = |scheme: &str| format!("{scheme}://{address}").parse::<Uri>();
        let endpoint = Endpoint::from(uri("http")?).origin(uri("https")?);
        let channel = endpoint.connect_with_connector(once).await;
        Ok(Open { channel: channel.map_err(|error| failure::transport(&error, address))?, replica: self })
    }
}

impl Open<'_> {
    pub(super) fn admin(&self) -> ModelAdminServiceClient<Channel> {
        ModelAdminServiceClient::new(self.channel.clone())
    }

    /// A request with its deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.replica.timeout.0);
        request
    }

    /// A call's failure in words.
    pub(super) fn failed(&self, status: &Status) -> anyhow::Error {
        failure::status(status, &self.replica.address)
    }

    /// Everything that is loaded.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<pb::Model>> {
        let mut client = ModelServiceClient::new(self.channel.clone());
        let (mut models, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = self.request(pb::ListModelsRequest { page_token, ..Default::default() });
            let page = client.list_models(request).await.map_err(|status| self.failed(&status))?.into_inner();
            models.extend(page.models);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(models);
            }
        }
    }

    /// The whole of a revision whose beginning was given, among the loaded ones of a model; what is not found so is
    /// left to the replica to refuse.
    pub(super) async fn revision(&self, name: &str, given: &str) -> anyhow::Result<String> {
        let models = self.models().await?;
        let begins = |revision: &str| revision.strip_prefix("sha256:").unwrap_or_default().starts_with(given);
        let mut found = models.into_iter().filter(|model| model.name == name && begins(&model.revision));
        Ok(match (found.next(), found.next()) {
            (Some(model), None) if !given.is_empty() => model.revision,
            _ => given.to_owned(),
        })
    }
}

/// The service that serves a model.
fn role(store: &Store, model: &str) -> anyhow::Result<Role> {
    Ok(match store.manifest(model)?.task {
        Task::Classification => Role::Classification,
        Task::Vision => Role::Vision,
        // Vectors of texts, and whatever else is computed from them.
        _ => Role::Embedding,
    })
}

fn service(text: &str) -> Result<Role, String> {
    let role = Role::SERVICES.into_iter().find(|role| role.name() == text);
    role.ok_or_else(|| format!("`{text}` is no service; there are embedding, classification and vision"))
}
