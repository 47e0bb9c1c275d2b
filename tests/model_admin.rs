//! Models are loaded, swapped and unloaded at run time, and no call fails meanwhile.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use http::Uri;
use proto::{
    common::v1::{self as common, ErrorReason},
    embedding::v1::EmbedStreamConfig,
    model::v1::{
        self as pb, model_admin_service_client::ModelAdminServiceClient, model_service_client::ModelServiceClient,
    },
};
use tonic::{Code, Status};

use crate::{
    embed_stream::Open,
    harness::{
        Channels, Connection, Mesh, ORIGIN, connect, credentials, embed, eventually, metric, metrics, refused,
        refused_field, resident, signal, tamis,
    },
};

const MODEL: &str = "all-minilm-l6-v2";
const EMBEDDING: &str = "spiffe://tamis.local/service/embedding";
const ONE_REPLICA: &str = "embedding=1,classification=0,vision=0";

type AdminClient = ModelAdminServiceClient<Connection>;

/// A client of the only replica's admin port.
async fn admin(mesh: &Mesh, client: &str) -> (AdminClient, ModelServiceClient<Connection>) {
    let credentials = credentials(&mesh.folder.certs(), client);
    let Channels(connection) = connect(mesh.replicas()[0].admin, &credentials, EMBEDDING).await.unwrap();
    let origin = Uri::from_static(ORIGIN);
    let models = ModelServiceClient::with_origin(connection.clone(), origin.clone());
    (ModelAdminServiceClient::with_origin(connection, origin), models)
}

/// Writes a manifest for the embedding model's files, under this name and with this limit of tokens.
fn write_manifest(data: &Path, name: &str, max_tokens: u32) {
    let builtin = include_str!("../services/engine/models/all-minilm-l6-v2.toml");
    let text = builtin
        .replace(&format!("name = {MODEL:?}"), &format!("name = {name:?}"))
        .replace("max_tokens = 256", &format!("max_tokens = {max_tokens}"));
    assert_ne!(text, builtin);
    fs::create_dir_all(data.join("manifests")).unwrap();
    fs::write(data.join("manifests").join(format!("{name}.toml")), text).unwrap();
}

fn load(name: &str, aliases: &[&str]) -> pb::LoadModelRequest {
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    pb::LoadModelRequest { name: name.into(), aliases, ..Default::default() }
}

fn alias(alias: &str, name: &str, revision: &str) -> pb::SetAliasRequest {
    pb::SetAliasRequest { alias: alias.into(), name: name.into(), revision: revision.into() }
}

fn unload(name: &str, revision: &str) -> pb::UnloadModelRequest {
    pb::UnloadModelRequest { name: name.into(), revision: revision.into() }
}

/// The revision that answers a call through the gateway.
async fn answering(client: &Channels, model: &str, revision: &str) -> Result<String, Status> {
    let selector =
        common::ModelSelector { model: model.into(), revision: revision.into(), require_space_id: String::new() };
    let request = proto::embedding::v1::EmbedRequest { model: Some(selector), ..embed(["which one?"]) };
    let response = client.embedding().embed(request).await?.into_inner();
    Ok(response.model.unwrap().revision)
}

/// Callers that call again and again until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    swapped: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Load {
    /// Starts 16 callers, who accept one revision or the other; once the models are swapped, the second only.
    async fn start(mesh: &Mesh, revisions: [String; 2]) -> Self {
        let (stop, swapped, answered): (Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let mut callers = Vec::new();
        for _ in 0..16 {
            let (client, revisions) = (mesh.client().await, revisions.clone());
            let (stop, swapped, answered) = (Arc::clone(&stop), Arc::clone(&swapped), Arc::clone(&answered));
            callers.push(tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    // Looked at before the call begins: what began earlier may still meet the old model.
                    let accepted = if swapped.load(SeqCst) { &revisions[1..] } else { &revisions[..] };
                    match answering(&client, "", "").await {
                        Ok(revision) if accepted.contains(&revision) => answered.fetch_add(1, SeqCst),
                        other => return Err(format!("{other:?}, accepted was {accepted:?}")),
                    };
                }
                Ok(())
            }));
        }
        Self { stop, swapped, answered, callers }
    }

    /// Waits until so many more calls were answered.
    async fn more(&self, calls: usize) {
        let goal = self.answered.load(SeqCst) + calls;
        eventually("calls are answered", async || {
            let failed = self.callers.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || self.answered.load(SeqCst) >= goal).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        for caller in self.callers {
            caller.await.unwrap().unwrap();
        }
        self.answered.load(SeqCst)
    }
}

#[tokio::test]
async fn no_call_fails_while_a_model_is_loaded_swapped_and_unloaded() {
    let mesh = Mesh::start(ONE_REPLICA);
    let replica = mesh.replicas().remove(0);
    let (client, (mut admin, _)) = (mesh.client().await, admin(&mesh, "client-dev").await);
    let old = answering(&client, "", "").await.unwrap();
    write_manifest(mesh.folder.path(), MODEL, 128);
    let new = engine_revision(&mesh, MODEL).await;
    let load_of_calls = Load::start(&mesh, [old.clone(), new.clone()]).await;
    let mut stream = Open::new(&client).await;
    stream.config(EmbedStreamConfig::default());
    stream.items(1, ["and then nothing"]);
    assert_eq!(stream.next().await.model.unwrap().revision, old);
    load_of_calls.more(200).await;

    let request = pb::LoadModelRequest { expected_revision: new.clone(), ..load(MODEL, &["canary"]) };
    let loaded = admin.load_model(request.clone()).await.unwrap().into_inner().model.unwrap();
    assert_eq!(
        (loaded.revision.as_str(), loaded.aliases.as_slice(), loaded.is_default),
        (&*new, &["canary".to_owned()][..], false)
    );
    assert_eq!(admin.load_model(request).await.unwrap().into_inner().model.unwrap().loaded_at, loaded.loaded_at);
    assert_eq!(answering(&client, MODEL, "").await.unwrap(), old);
    assert_eq!(answering(&client, "canary", "").await.unwrap(), new);
    assert_eq!(answering(&client, MODEL, &new).await.unwrap(), new);
    assert_eq!(metric(&metrics(replica.admin).await, "tamis_models_loaded"), 2.0);
    load_of_calls.more(200).await;
    let both = resident(replica.pid.unwrap());

    let before = admin.set_alias(alias(MODEL, MODEL, &new)).await.unwrap().into_inner().previous_revision;
    load_of_calls.swapped.store(true, SeqCst);
    assert_eq!(before, old);
    assert_eq!(answering(&client, MODEL, &old).await.unwrap(), old, "a pinned revision that is loaded answers");
    load_of_calls.more(200).await;

    admin.unload_model(unload(MODEL, &old)).await.unwrap();
    let end = stream.end().await.1.expect("a stream lets go of the model that it holds");
    refused(&end, Code::Unavailable, ErrorReason::Draining);
    let one = resident(replica.pid.unwrap());
    load_of_calls.more(400).await;
    let answered = load_of_calls.end().await;
    assert!(answered >= 1000, "{answered}");
    refused(
        &answering(&client, MODEL, &old).await.unwrap_err(),
        Code::FailedPrecondition,
        ErrorReason::RevisionMismatch,
    );
    assert_eq!(metric(&metrics(replica.admin).await, "tamis_models_loaded"), 1.0);
    assert!(one + (20 << 20) < both, "{one} bytes with one model, {both} with both");
}

/// The revision of a manifest, as the replica sees it: nothing is loaded that is not expected.
async fn engine_revision(mesh: &Mesh, name: &str) -> String {
    let (mut admin, _) = admin(mesh, "client-dev").await;
    let request = pb::LoadModelRequest { expected_revision: "sha256:0".into(), ..load(name, &[]) };
    let status = admin.load_model(request).await.unwrap_err();
    refused(&status, Code::FailedPrecondition, ErrorReason::RevisionMismatch);
    refused_field(&status, ErrorReason::RevisionMismatch, "expected_revision");
    let at = status.message().find("sha256:").unwrap();
    status.message()[at..at + 71].to_owned()
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_reason_and_changes_nothing() {
    let mesh = Mesh::start(ONE_REPLICA);
    let data = mesh.folder.path();
    let (client, (mut admin, mut models)) = (mesh.client().await, admin(&mesh, "client-dev").await);
    let before = models.list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner();
    let old = before.models[0].revision.clone();

    let check = |status: Status, code, reason| refused(&status, code, reason);
    let status = admin.load_model(load("no-such-model", &[])).await.unwrap_err();
    check(status, Code::NotFound, ErrorReason::ModelNotFound);
    let status = admin.load_model(load("efficientnet-lite0", &[])).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::ModelNotLoadable);
    write_manifest(data, "never-pulled", 100);
    let status = admin.load_model(load("never-pulled", &[MODEL])).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::ModelNotLoadable);
    write_manifest(data, "corrupt", 100);
    copy_models(data, "corrupt");
    let status = admin.load_model(load("corrupt", &[MODEL])).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::ModelNotLoadable);
    fs::write(data.join("manifests/broken.toml"), "name = 1").unwrap();
    let status = admin.load_model(load("broken", &[])).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::ModelNotLoadable);
    fs::remove_file(data.join("manifests/broken.toml")).unwrap();
    let status = admin.load_model(load(MODEL, &["Not a name"])).await.unwrap_err();
    refused_field(&status, ErrorReason::BadParameter, "aliases[0]");
    let status = admin.load_model(load(MODEL, &["a"; 17])).await.unwrap_err();
    refused_field(&status, ErrorReason::BadParameter, "aliases");
    let status = admin.set_alias(alias("", MODEL, "")).await.unwrap_err();
    refused_field(&status, ErrorReason::BadParameter, "alias");
    let status = admin.set_alias(alias("canary", "no-such-model", "")).await.unwrap_err();
    check(status, Code::NotFound, ErrorReason::ModelNotFound);
    let status = admin.set_alias(alias("canary", MODEL, "sha256:0")).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::RevisionMismatch);
    let status = admin.unload_model(unload("no-such-model", "")).await.unwrap_err();
    check(status, Code::NotFound, ErrorReason::ModelNotFound);
    let status = admin.unload_model(unload(MODEL, &old)).await.unwrap_err();
    check(status, Code::FailedPrecondition, ErrorReason::ModelInUse);

    assert!(tamis(data, &["certs", "issue", "client/alice"]).await.success);
    let (mut stranger, mut stranger_models) = self::admin(&mesh, "client-alice").await;
    let status = stranger.load_model(load(MODEL, &[])).await.unwrap_err();
    check(status, Code::PermissionDenied, ErrorReason::NotAllowed);
    let status = stranger_models.list_models(pb::ListModelsRequest::default()).await.unwrap_err();
    check(status, Code::PermissionDenied, ErrorReason::NotAllowed);

    let after = models.list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(after, before);
    assert_eq!(answering(&client, "", "").await.unwrap(), old);
}

/// Adds a copy of a model that has a wrong byte to those that all tests share.
fn copy_models(data: &Path, copy: &str) {
    let shared = fs::read_link(data.join("models").join(MODEL)).unwrap();
    let folder = data.join("models").join(copy);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(shared).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(weights, bytes).unwrap();
}

#[tokio::test]
async fn a_replica_that_is_killed_comes_back_with_what_was_loaded_by_the_command_line() {
    let mesh = Mesh::start(ONE_REPLICA);
    let data = mesh.folder.path();
    let client = mesh.client().await;
    let old = answering(&client, "", "").await.unwrap();
    write_manifest(data, MODEL, 64);
    let done = tamis(data, &["models", "load", MODEL, "--alias", "canary"]).await;
    assert!(done.success && done.stdout.contains("canary stands for it"), "{done:?}");
    let new = answering(&client, "canary", "").await.unwrap();
    assert_ne!(new, old);
    let done = tamis(data, &["models", "alias", "default", MODEL, "--revision", &new[7..15]]).await;
    assert!(done.success, "{done:?}");
    assert_eq!(answering(&client, "", "").await.unwrap(), new);
    let done = tamis(data, &["models", "loaded"]).await;
    assert!(done.stdout.contains(&new[7..19]) && done.stdout.contains(&old[7..19]), "{done:?}");
    let done = tamis(data, &["models", "unload", MODEL, "--revision", &new[7..19]]).await;
    assert!(!done.success && done.stderr.contains("MODEL_IN_USE"), "{done:?}");

    let done = tamis(data, &["models", "unload", MODEL]).await;
    assert!(done.success, "{done:?}");
    let replica = mesh.replicas().remove(0);
    signal(replica.pid.unwrap(), "KILL");
    eventually("it comes back", async || mesh.replicas()[0].pid.filter(|pid| Some(*pid) != replica.pid)).await;
    eventually("it answers", async || answering(&client, "canary", "").await.ok().filter(|now| *now == new)).await;
    assert_eq!(answering(&client, "", "").await.unwrap(), new);
    refused(&answering(&client, MODEL, "").await.unwrap_err(), Code::NotFound, ErrorReason::ModelNotFound);
}
