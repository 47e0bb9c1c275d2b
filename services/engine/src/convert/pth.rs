//! Turns a PyTorch checkpoint of the older kind (`torch.save` before 1.6: no zip archive) into safetensors.
//!
//! Such a file is five pickles (a magic number, a protocol number, facts about the machine, the state dict, the order of
//! the storages) and then the storages, each an element count and its bytes. Tensors are views of storages by offset and
//! strides; they are written out contiguous. A corrupt or hostile file is an error, never a panic, and costs memory in
//! proportion to its length.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use safetensors::{Dtype, tensor::TensorView};

use self::pickle::{Id, Pickle, Value, array, take};
use crate::Error;

mod pickle;

/// A pickle of protocol 2 that holds 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// How many times the file's length the tensors may take together. A file without shared storages needs less than 1;
/// tied weights need up to 2; beyond lies a file that names one storage many times to fill the disk.
const GROWTH_MAX: usize = 2;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed(&'static str);

/// Reads the checkpoint `input` and writes its tensors to `output`, under their names and in their types.
///
/// # Errors
/// When `input` cannot be read or is no such checkpoint, or `output` cannot be written.
pub(super) fn convert(input: &Path, output: &Path) -> Result<(), Error> {
    let bytes = fs::read(input).map_err(Error::io(input))?;
    let tensors = read(&bytes).map_err(|Malformed(what)| Error::load(input.display(), what))?;
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?)))
        .collect();
    views
        .and_then(|views| safetensors::serialize_to_file(views, None, output))
        .map_err(|error| Error::load(output.display(), error))
}

/// A tensor, contiguous and row-major.
#[derive(Debug, PartialEq)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Elements that tensors are views of.
struct Storage<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

fn read(file: &[u8]) -> Result<BTreeMap<String, Tensor>, Malformed> {
    if file.starts_with(b"PK") {
        return Err(Malformed("it is a zip archive: a newer checkpoint, not the older kind that `legacy-pth` reads"));
    }
    let mut rest = file.strip_prefix(MAGIC).ok_or(Malformed("it does not begin as a PyTorch checkpoint does"))?;
    Pickle::read(&mut rest)?; // the protocol's number
    Pickle::read(&mut rest)?; // byte order and sizes of C types: storages are little-endian all the same
    let state = Pickle::read(&mut rest)?;
    let order = Pickle::read(&mut rest)?;
    let storages = storages(&state, &order, &mut rest)?;

    let Value::Dict(entries) = state.root() else {
        return Err(Malformed("it is not a state dict"));
    };
    let mut tensors = BTreeMap::new();
    let mut budget = file.len().saturating_mul(GROWTH_MAX);
    for &(name, value) in entries {
        let (Value::Text(name), Some(arguments)) = (state.get(name), view_arguments(&state, value)) else {
            continue;
        };
        let tensor = gather(&state, arguments, &storages, budget)?;
        budget -= tensor.bytes.len();
        tensors.insert(name.clone(), tensor);
    }
    if tensors.is_empty() {
        return Err(Malformed("it holds no tensors"));
    }
    Ok(tensors)
}

/// Reads the storages, which follow the pickles in the order of the last of them.
fn storages<'a>(
    state: &'a Pickle,
    order: &Pickle,
    rest: &mut &'a [u8],
) -> Result<HashMap<String, Storage<'a>>, Malformed> {
    let dtypes = storage_dtypes(state);
    let Value::List(keys) = order.root() else {
        return Err(Malformed("its storages have no order"));
    };
    let mut storages = HashMap::new();
    for &key in keys {
        let Value::Text(key) = order.get(key) else {
            return Err(Malformed("a storage has no name"));
        };
        let &dtype = dtypes.get(key.as_str()).ok_or(Malformed("a storage is of a type that is not read here"))?;
        let count = usize::try_from(i64::from_le_bytes(array(rest)?)).map_err(|_| BEYOND)?;
        let bytes = take(rest, count.checked_mul(size(dtype)).ok_or(BEYOND)?)?;
        storages.insert(key.clone(), Storage { dtype, bytes });
    }
    Ok(storages)
}

/// The element type of each storage, which only the references to it tell.
fn storage_dtypes(state: &Pickle) -> HashMap<&str, Dtype> {
    let mut dtypes = HashMap::new();
    for value in state.values() {
        let Value::Persistent(reference) = value else { continue };
        let Value::Tuple(fields) = state.get(*reference) else { continue };
        let [_, class, key, ..] = fields[..] else { continue };
        if let (Value::Global(class), Value::Text(key)) = (state.get(class), state.get(key))
            && let Some(dtype) = dtype(class)
        {
            dtypes.insert(key.as_str(), dtype);
        }
    }
    dtypes
}

/// What a tensor is rebuilt from: storage, offset, sizes, strides. None for whatever is no tensor.
fn view_arguments(state: &Pickle, value: Id) -> Option<&[Id]> {
    let Value::Call { function, arguments } = *state.get(value) else { return None };
    let (Value::Global(function), Value::Tuple(arguments)) = (state.get(function), state.get(arguments)) else {
        return None;
    };
    match function.as_str() {
        "torch._utils _rebuild_tensor_v2" => Some(arguments),
        // A parameter wraps its tensor. Not recursive: a parameter of a parameter does not exist.
        "torch._utils _rebuild_parameter" => {
            let Value::Call { function, arguments } = *state.get(*arguments.first()?) else { return None };
            match (state.get(function), state.get(arguments)) {
                (Value::Global(function), Value::Tuple(arguments)) if function == "torch._utils _rebuild_tensor_v2" => {
                    Some(arguments)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Copies the elements of a view, at most `budget` bytes of them, in the order of its indices.
fn gather(
    state: &Pickle,
    arguments: &[Id],
    storages: &HashMap<String, Storage<'_>>,
    budget: usize,
) -> Result<Tensor, Malformed> {
    let [storage, offset, shape, strides, ..] = *arguments else {
        return Err(Malformed("a tensor lacks its shape"));
    };
    let storage = storage_key(state, storage)
        .and_then(|key| storages.get(key))
        .ok_or(Malformed("a tensor is a view of a storage that is not there"))?;
    let offset = length(state, offset)?;
    let (shape, strides) = (lengths(state, shape)?, lengths(state, strides)?);
    let size = size(storage.dtype);
    let count = shape.iter().try_fold(1_usize, |count, &length| count.checked_mul(length)).ok_or(BEYOND)?;
    if count.checked_mul(size).is_none_or(|bytes| bytes > budget) {
        return Err(Malformed("its tensors are larger than its storages"));
    }
    if shape.len() != strides.len() || (count > 0 && last(offset, &shape, &strides)? >= storage.bytes.len() / size) {
        return Err(BEYOND);
    }

    let mut bytes = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    let mut element = offset;
    for _ in 0..count {
        bytes.extend_from_slice(&storage.bytes[element * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            element += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            element -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Ok(Tensor { dtype: storage.dtype, shape, bytes })
}

const BEYOND: Malformed = Malformed("a tensor reaches beyond its storage");

/// The furthest element of a view.
fn last(offset: usize, shape: &[usize], strides: &[usize]) -> Result<usize, Malformed> {
    // One stride more than is read, since the walk steps past the end of an axis before it returns.
    let past = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (&length, &stride)| at.checked_add(length.checked_mul(stride)?));
    past.map(|_| ()).ok_or(BEYOND)?;
    Ok(shape.iter().zip(strides).fold(offset, |at, (&length, &stride)| at + (length - 1) * stride))
}

fn storage_key(state: &Pickle, storage: Id) -> Option<&str> {
    let Value::Persistent(reference) = *state.get(storage) else { return None };
    let Value::Tuple(fields) = state.get(reference) else { return None };
    let Value::Text(key) = state.get(*fields.get(2)?) else { return None };
    Some(key)
}

fn length(state: &Pickle, value: Id) -> Result<usize, Malformed> {
    let Value::Int(length) = *state.get(value) else { return Err(BEYOND) };
    usize::try_from(length).map_err(|_| BEYOND)
}

fn lengths(state: &Pickle, value: Id) -> Result<Vec<usize>, Malformed> {
    let Value::Tuple(lengths) = state.get(value) else { return Err(BEYOND) };
    lengths.iter().map(|&value| length(state, value)).collect()
}

fn dtype(class: &str) -> Option<Dtype> {
    Some(match class.strip_prefix("torch ")? {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

fn size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn tuple(items: &[u8]) -> Vec<u8> {
        [b"(", items, b"t"].concat()
    }

    /// A view of the float storage `key` of `count` elements.
    fn view(key: &str, count: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let numbers = |all: &[u8]| tuple(&all.iter().flat_map(|&number| [b'K', number]).collect::<Vec<_>>());
        let storage =
            [&text("storage"), &b"ctorch\nFloatStorage\n"[..], &text(key), &text("cpu"), &[b'K', count], b"N"];
        let storage = [&tuple(&storage.concat()), &b"Q"[..]].concat();
        let hooks = b"ccollections\nOrderedDict\n)R";
        let arguments = [&storage, &[b'K', offset][..], &numbers(shape), &numbers(strides), b"\x89", hooks].concat();
        [&b"ctorch._utils\n_rebuild_tensor_v2\n"[..], &tuple(&arguments), b"R"].concat()
    }

    /// A checkpoint of named tensors over one storage, "7", of six floats.
    fn checkpoint(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<u8> = tensors.iter().flat_map(|(name, tensor)| [text(name), tensor.clone()].concat()).collect();
        let storage: Vec<u8> = (0..6_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        [
            MAGIC,
            b"\x80\x02M\xe9\x03.",
            b"\x80\x02}q\x00.",
            // The dict is remembered, filled, recalled and given attributes, as PyTorch does.
            &[&b"\x80\x02ccollections\nOrderedDict\n)Rq\x01("[..], &items, b"u}(", &text("_metadata"), b"h\x01ub."]
                .concat(),
            &[&b"\x80\x02]q\x00"[..], &text("7"), b"a."].concat(),
            &6_i64.to_le_bytes(),
            &storage,
        ]
        .concat()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    fn refuses(file: &[u8], why: &str) {
        let Malformed(what) = read(file).unwrap_err();
        assert!(what.contains(why), "{what:?} does not say {why:?}");
    }

    #[test]
    fn views_are_gathered_by_their_strides() {
        let parameter =
            [&b"ctorch._utils\n_rebuild_parameter\n"[..], &tuple(&view("7", 6, 2, &[2], &[3])), b"R"].concat();
        let tensors = read(&checkpoint(&[
            ("plain", view("7", 6, 0, &[2, 3], &[3, 1])),
            ("transposed", view("7", 6, 0, &[3, 2], &[1, 3])),
            ("parameter", parameter),
            ("scalar", view("7", 6, 5, &[], &[])),
            ("empty", view("7", 6, 0, &[0, 3], &[3, 1])),
            ("no tensor", b"K\x05".to_vec()),
        ]));
        let tensors = tensors.unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["empty", "parameter", "plain", "scalar", "transposed"]);
        assert_eq!(values(&tensors["plain"]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(values(&tensors["transposed"]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(values(&tensors["parameter"]), [2.0, 5.0]);
        assert_eq!(values(&tensors["scalar"]), [5.0]);
        assert_eq!(tensors["empty"].shape, [0, 3]);
    }

    #[test]
    fn the_file_that_is_written_is_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("old.pth"), folder.path().join("new.safetensors"));
        fs::write(&input, checkpoint(&[("a.weight", view("7", 6, 0, &[3, 2], &[1, 3]))])).unwrap();
        convert(&input, &output).unwrap();
        let bytes = fs::read(&output).unwrap();
        let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = written.tensor("a.weight").unwrap();
        assert_eq!((tensor.shape(), tensor.dtype()), (&[3, 2][..], Dtype::F32));

        fs::write(&input, b"no checkpoint").unwrap();
        let error = convert(&input, &output).unwrap_err().to_string();
        assert!(error.contains("old.pth") && error.contains("does not begin"), "{error}");
    }

    #[test]
    fn what_is_no_older_checkpoint_is_refused() {
        refuses(b"", "does not begin");
        refuses(b"PK\x03\x04", "zip archive");
        refuses(&checkpoint(&[("a", tuple(&view("7", 6, 0, &[1], &[1])))]), "no tensors");
        refuses(&checkpoint(&[("a", view("8", 6, 0, &[1], &[1]))]), "of a type that is not read");
        let (a, b) = (view("7", 6, 0, &[1], &[1]), view("8", 6, 0, &[1], &[1]));
        refuses(&checkpoint(&[("a", a), ("b", b)]), "not there");
    }

    #[test]
    fn a_view_beyond_its_storage_is_refused() {
        refuses(&checkpoint(&[("a", view("7", 6, 1, &[6], &[1]))]), "beyond");
        refuses(&checkpoint(&[("a", view("7", 6, 0, &[2, 2], &[5, 1]))]), "beyond");
        refuses(&checkpoint(&[("a", view("7", 6, 0, &[2], &[1, 1]))]), "beyond");
    }

    #[test]
    fn a_small_file_cannot_ask_for_much() {
        refuses(&checkpoint(&[("a", view("7", 6, 0, &[255, 255, 255], &[0, 0, 0]))]), "larger");
        refuses(&checkpoint(&[("a", view("7", 6, 0, &[255; 64], &[0; 64]))]), "beyond");
        // Each pair of operations doubles what a value stands for; only the names of values are copied.
        let doubling = (0..200).flat_map(|_| *b"q\x00h\x00\x86").collect::<Vec<_>>();
        let bomb = [MAGIC, b"K\x01.", b"}.", b")", &doubling, b"."].concat();
        refuses(&bomb, "ends early");
        let deep = [MAGIC, b"K\x01.", b"}.", b")", &[0x85; 1_000_000], b"."].concat();
        refuses(&deep, "ends early");
    }

    #[test]
    fn no_corruption_panics() {
        let whole = checkpoint(&[("a", view("7", 6, 0, &[3, 2], &[1, 3])), ("b", view("7", 6, 0, &[6], &[1]))]);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut corrupt = whole.clone();
                corrupt[at] = byte;
                let _ = read(&corrupt);
            }
        }
    }
}
