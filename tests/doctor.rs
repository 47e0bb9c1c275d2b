//! `tamis doctor`: a healthy mesh has nothing to complain of, and what is broken is named with its remedy.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use rcgen::{CertificateParams, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::Value;

use crate::harness::{Finished, mesh, tamis};

fn findings(finished: &Finished) -> Vec<Value> {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    report["findings"].as_array().unwrap().clone()
}

/// Finds what is wrong in a data directory of its own.
async fn examine(data: &Path) -> Vec<Value> {
    let finished = tamis(data, &["doctor", "--json"]).await;
    findings(&finished)
}

#[track_caller]
fn check(findings: &[Value], (check, subject): (&str, &str), mark: &str, parts: &[&str]) {
    let finding = findings.iter().find(|finding| finding["check"] == check && finding["subject"] == subject);
    let finding = finding.unwrap_or_else(|| panic!("no {check} {subject} in {findings:#?}"));
    assert_eq!(finding["mark"], mark, "{finding}");
    assert!(mark == "ok" || finding["help"].is_string(), "{finding}");
    for part in parts {
        assert!(finding.to_string().contains(part), "{part} is missing in {finding}");
    }
}

async fn certificates() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let made = tamis(data.path(), &["certs", "init"]).await;
    assert!(made.success, "{}", made.stderr);
    data
}

#[tokio::test]
async fn a_healthy_mesh_has_nothing_to_complain_of() {
    let mesh = mesh();
    let finished = tamis(mesh.folder.path(), &["doctor", "--deep", "--json"]).await;
    assert!(finished.success, "{}{}", finished.stdout, finished.stderr);
    let findings = findings(&finished);
    for member in mesh.members() {
        check(&findings, ("process", &member.name), "ok", &["ready"]);
        check(&findings, ("port", &member.grpc.to_string()), "ok", &[&member.name]);
    }
    check(&findings, ("gateway", &mesh.gateway().grpc.to_string()), "ok", &["answers"]);
    for stem in ["ca", "gateway", "embedding", "client-dev"] {
        check(&findings, ("certificate", stem), "ok", &["days left"]);
    }
    check(&findings, ("model", "all-minilm-l6-v2"), "ok", &["digest"]);
    for name in ["processor", "kernels", "huge pages", "precision", "cores", "memory", "disk", "open files", "clock"] {
        assert!(findings.iter().any(|finding| finding["check"] == name), "no {name} in {findings:#?}");
    }
    let table = tamis(mesh.folder.path(), &["doctor"]).await;
    assert!(table.stdout.contains("✓ ok") && table.stdout.contains("0 failed"), "{}", table.stdout);
}

#[tokio::test]
async fn an_expired_certificate_is_named() {
    let data = certificates().await;
    let certs = data.path().join("certs");
    let read = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://tamis.local/service/vision".try_into().unwrap())];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    let expired = params.signed_by(&KeyPair::from_pem(&read("vision.key")).unwrap(), &authority).unwrap();
    fs::write(certs.join("vision.pem"), expired.pem()).unwrap();

    let findings = examine(data.path()).await;
    let parts = ["expired on 2020-02-01", "tamis certs issue service/vision --force"];
    check(&findings, ("certificate", "vision"), "fail", &parts);
    check(&findings, ("certificate", "gateway"), "ok", &[]);
    let table = tamis(data.path(), &["doctor"]).await;
    assert!(!table.success && table.stdout.contains("✗ FAIL"), "{}", table.stdout);
}

#[tokio::test]
async fn a_key_that_others_may_read_is_named() {
    let data = certificates().await;
    let key = data.path().join("certs/gateway.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let findings = examine(data.path()).await;
    check(&findings, ("certificate", "gateway"), "fail", &["0640", &format!("chmod 600 {}", key.display())]);
}

#[tokio::test]
async fn a_model_that_is_missing_or_broken_is_named() {
    let data = certificates().await;
    let missing = examine(data.path()).await;
    check(&missing, ("model", "all-minilm-l6-v2"), "warn", &["tamis models pull all-minilm-l6-v2"]);

    let name = "efficientnet-lite0";
    let (from, to) = (mesh().folder.path().join("models").join(name), data.path().join("models").join(name));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    check(&examine(data.path()).await, ("model", name), "ok", &["whole"]);
    let weights = to.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let deep = tamis(data.path(), &["doctor", "--deep", "--json"]).await;
    assert!(!deep.success);
    check(&findings(&deep), ("model", name), "fail", &["model.safetensors", "tamis models pull efficientnet-lite0"]);
}

#[tokio::test]
async fn a_machine_where_nothing_was_done_yet_is_told_how_to_begin() {
    let data = tempfile::tempdir().unwrap();
    let findings = examine(data.path()).await;
    check(&findings, ("certificate", "all"), "warn", &["tamis up"]);
    check(&findings, ("mesh", "-"), "ok", &["tamis up"]);
}
