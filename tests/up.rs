//! `tamis up`: the whole mesh with one command, and nothing left of it afterwards.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::harness::{Mesh, children, eventually, is_alive, mesh, signal, tamis};

/// `up` and all processes of its mesh.
fn family(mesh: &Mesh) -> Vec<u32> {
    let members: Vec<_> = mesh.members().iter().map(|member| member.pid.unwrap()).collect();
    let mut children = children(mesh.pid());
    children.sort_unstable();
    let mut expected = members.clone();
    expected.sort_unstable();
    assert_eq!(children, expected, "one process per member, and no other");
    [members, vec![mesh.pid()]].concat()
}

#[tokio::test]
async fn the_last_line_says_that_the_mesh_is_ready_and_the_others_where() {
    let mesh = mesh();
    let text = mesh.printed.join("\n");
    assert_eq!(mesh.printed.last().map(|line| line.trim()), Some("The mesh is ready."), "{text}");
    let client = mesh.folder.certs().join("client-dev.pem");
    for part in [mesh.gateway().grpc.to_string().as_str(), client.to_str().unwrap(), "grpcurl"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let names: Vec<_> = mesh.members().into_iter().map(|member| member.name).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("embedding")).count(), 2, "{names:?}");
    assert_eq!(names.len(), 5, "{names:?}");
}

#[tokio::test]
async fn private_keys_are_their_owners_alone() {
    let mesh = mesh();
    let keys = fs::read_dir(mesh.folder.certs()).unwrap().map(|entry| entry.unwrap().path());
    let keys: Vec<_> = keys.filter(|path| path.extension().is_some_and(|extension| extension == "key")).collect();
    assert!(keys.len() >= 6, "{keys:?}");
    for key in keys {
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
    }
}

#[tokio::test]
async fn a_second_mesh_in_the_same_place_is_refused_and_told_where_the_first_is() {
    let mesh = mesh();
    let second = tamis(mesh.folder.path(), &["up"]).await;
    assert!(!second.success);
    for part in [mesh.gateway().grpc.to_string(), mesh.pid().to_string()] {
        assert!(second.stderr.contains(&part), "{part} is missing in:\n{}", second.stderr);
    }
    assert!(is_alive(mesh.pid()));
}

#[tokio::test]
async fn ctrl_c_drains_and_ends_every_process() {
    let mesh = Mesh::start("classification=0,vision=0");
    let (family, record) = (family(&mesh), mesh.folder.path().join("run/mesh.json"));
    signal(mesh.pid(), "INT");
    // No second signal before it has ended: that would cut the draining short.
    eventually("the mesh ends", async || (!is_alive(mesh.pid())).then_some(())).await;
    let ended = mesh.end();
    assert!(ended.success(), "{ended}");
    assert!(family.iter().all(|&pid| !is_alive(pid)));
    assert!(!record.exists());
}

#[tokio::test]
async fn nothing_is_orphaned_when_up_is_killed() {
    let mesh = Mesh::start("classification=0,vision=0");
    let family = family(&mesh);
    signal(mesh.pid(), "KILL");
    eventually("every process ends", async || family.iter().all(|&pid| !is_alive(pid)).then_some(())).await;
    let again = tamis(mesh.folder.path(), &["call", "embed", "anybody there?"]).await;
    assert!(!again.success && again.stderr.contains("tamis up"), "{}", again.stderr);
}

#[tokio::test]
async fn numbers_of_replicas_that_make_no_sense_are_refused() {
    let mesh = mesh();
    for (replicas, expected) in
        [("embeding=1", "embedding"), ("vision=many", "number"), ("vision=0,embedding=0,classification=0", "one")]
    {
        let refused = tamis(mesh.folder.path(), &["up", "--replicas", replicas]).await;
        assert!(!refused.success && refused.stderr.contains(expected), "{replicas}: {}", refused.stderr);
    }
}
