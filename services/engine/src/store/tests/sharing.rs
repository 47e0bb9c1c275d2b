//! Files that models of one machine have in common.

use super::*;

/// The same files under another name.
fn copy_of(manifest: &Manifest, name: &str) -> Manifest {
    Manifest { name: name.to_owned().try_into().unwrap(), ..manifest.clone() }
}

#[test]
fn files_that_another_model_has_are_on_the_disk_once_and_are_not_fetched() {
    use std::os::unix::fs::MetadataExt as _;
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let first = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    let asked = shelf.asked.borrow().len();
    let mut copy = copy_of(&manifest, "copy");
    copy.files[0].name = "settings.json".to_owned();
    copy.files.push(FileSpec { name: "config.json".to_owned(), ..copy.files[0].clone() });
    let heard = Heard::default();
    let second = store.pull_through(&copy, &heard, &shelf).unwrap();
    assert_eq!(shelf.asked.borrow().len(), asked);
    assert!(heard.0.lock().unwrap().join("\n").contains("model.safetensors is on this machine already, for m"));
    let inode = |files: &ModelFiles, name: &str| fs::metadata(files.path(name)).unwrap().ino();
    for (ours, theirs) in [("model.safetensors", "model.safetensors"), ("settings.json", "config.json")] {
        assert_eq!(inode(&second, ours), inode(&first, theirs), "{ours}");
    }
    assert!(store.verify(&copy).unwrap().iter().all(|check| check.state == FileState::Whole));
    assert_eq!(names(&second.folder).iter().filter(|name| name.starts_with(".part")).count(), 0);

    // Each is whole without the other.
    fs::remove_dir_all(&first.folder).unwrap();
    assert!(store.is_present(&copy) && !store.is_present(&manifest));
}

#[test]
fn a_file_that_only_looks_like_the_one_wanted_is_not_shared() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let first = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    // Damaged since, and converted in another way.
    fs::write(first.path("tokenizer.json"), b"tokenz").unwrap();
    let mut copy = copy_of(&manifest, "copy");
    let weights = copy.files.iter_mut().find(|file| file.name == "model.safetensors").unwrap();
    weights.convert = Some(crate::convert::Kind::OnnxInt8Bert);
    shelf.asked.borrow_mut().clear();
    let failed = store.pull_through(&copy, &Heard::default(), &shelf);
    assert!(failed.is_err(), "the weights are no ONNX file");
    let asked = shelf.asked.borrow().join("\n");
    assert!(asked.contains("tokenizer.json") && asked.contains("model.safetensors"), "{asked}");
    assert!(!asked.contains("config.json"), "{asked}");
    assert_eq!(fs::read(data.path().join("models/copy/tokenizer.json")).unwrap(), b"tokens");
    assert_eq!(fs::read(first.path("tokenizer.json")).unwrap(), b"tokenz", "the other's file is its own");
}

#[test]
fn damage_that_shows_neither_in_length_nor_in_time_is_not_shared() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let first = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    let path = first.path("tokenizer.json");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"tokenz").unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    let heard = Heard::default();
    let second = store.pull_through(&copy_of(&manifest, "copy"), &heard, &shelf).unwrap();
    assert!(
        heard.0.lock().unwrap().join("\n").contains("tokenizer.json of m can not be shared: its bytes have changed")
    );
    assert_eq!(fs::read(second.path("tokenizer.json")).unwrap(), b"tokens");
}

#[test]
fn a_file_that_is_somebodys_own_behind_a_link_is_copied() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let first = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    let (linked, own) = (first.path("model.safetensors"), data.path().join("mine.safetensors"));
    fs::rename(&linked, &own).unwrap();
    std::os::unix::fs::symlink(&own, &linked).unwrap();
    let second = store.pull_through(&copy_of(&manifest, "copy"), &Heard::default(), &Shelf::default()).unwrap();
    let copied = second.path("model.safetensors");
    assert!(fs::symlink_metadata(&copied).unwrap().is_file());
    fs::write(&own, b"WEIGHTS").unwrap();
    assert_eq!(fs::read(copied).unwrap(), b"weights");
}

#[test]
fn a_model_made_of_another_ones_files_is_installed_with_its_manifest() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    let copy = copy_of(&manifest, "copy");
    let path = store.install_shared(&copy, "Made of m.\nTwice.", &Heard::default()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Made of m.\n# Twice.\nname = \"copy\"\n"), "{text}");
    assert!(store.is_present(&store.manifest("copy").unwrap()));
}
