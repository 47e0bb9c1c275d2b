//! Every command in the documentation, run as its reader runs it, and what it prints beside what the page says.

use std::{fs, path::Path};

use crate::{
    harness::{Hub, Page, mesh_page},
    hub::{MINILM, minilm},
};

async fn check(name: &str) {
    check_with(name, &[]).await;
}

/// With these environment variables.
async fn check_with(name: &str, variables: &[(&str, &str)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    let page = Page::parse(&fs::read_to_string(&path).unwrap());
    assert!(!page.is_empty(), "{name} has no command");
    mesh_page(name, &page, variables).await;
}

#[test]
fn every_page_has_its_test() {
    let here = include_str!("docs.rs");
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let checked = ["check", "check_with"].iter().any(|check| here.contains(&format!("{check}(\"{name}\"")));
        assert!(checked || UNTESTED.contains(&name.as_str()), "{name}");
    }
}

/// Pages whose commands have a test elsewhere.
const UNTESTED: [&str; 2] = [
    "clients.md", // tests/clients/run
    "engine.md",  // what it measures takes half an hour and a quiet machine
];

/// A page is written before its numbers are measured; what marks their place must not be published.
#[test]
fn no_page_has_a_place_that_waits_for_its_text() {
    let waits = |line: &&str| line.len() > 2 && line.chars().all(|character| character.is_ascii_uppercase());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = fs::read_dir(here.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in pages.chain(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| here.join(name))) {
        let text = fs::read_to_string(&page).unwrap();
        let found: Vec<_> = text.lines().map(str::trim).filter(waits).collect();
        assert!(found.is_empty(), "{found:?} in {}", page.display());
    }
}

#[tokio::test]
async fn getting_started_works_as_written() {
    check("getting-started.md").await;
}

#[tokio::test]
async fn the_contracts_work_as_written() {
    check("contracts.md").await;
}

#[tokio::test]
async fn adding_a_model_works_as_written() {
    // The page speaks of the Hub; here one on loopback answers for it.
    let hub = Hub::start().await;
    hub.publish(MINILM, minilm());
    check_with("models.md", &[("HF_ENDPOINT", &hub.endpoint), ("HF_TOKEN", ""), ("NO_PROXY", "127.0.0.1")]).await;
}

#[tokio::test]
async fn operating_works_as_written() {
    check("operating.md").await;
}

#[tokio::test]
async fn training_a_head_works_as_written() {
    check("heads.md").await;
}
