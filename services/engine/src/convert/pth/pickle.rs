//! Reads the values of a pickle: the part of the format that PyTorch's older checkpoints are written in.
//!
//! It runs nothing: globals stay names and calls stay data, so the worst that a hostile file achieves is to be refused.
//! All values lie in one arena and name each other by index. So a file makes this reader allocate in proportion to its
//! length, whatever it shares or nests, and deep nesting is dropped without recursion. candle's reader promises neither:
//! it copies whole values in and out of the memo, and takes argument lists apart by panicking `remove`s.

use std::collections::HashMap;

use super::Malformed;

/// A whole pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// A value's place in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// What a checkpoint is made of.
#[derive(Debug)]
pub(super) enum Value {
    Int(i64),
    /// What no tensor needs: none, a truth value, a float, an integer beyond 64 bits.
    Other,
    Text(String),
    /// The name of a class or function: "module name".
    Global(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function with its tuple of arguments, not called.
    Call {
        function: Id,
        arguments: Id,
    },
    /// A reference to something outside the pickle: a storage.
    Persistent(Id),
}

// === impl Pickle ===

impl Pickle {
    /// Reads one pickle from the front of `bytes` and leaves what follows it.
    pub(super) fn read(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        let mut machine = Machine::default();
        loop {
            let code = byte(bytes)?;
            if code == b'.' {
                let root = machine.pop()?;
                return Ok(Self { values: machine.values, root });
            }
            machine.step(code, bytes)?;
        }
    }

    /// The value that the whole pickle stands for.
    pub(super) fn root(&self) -> &Value {
        self.get(self.root)
    }

    /// The value at `id`.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id.0]
    }

    /// Every value, nested or not.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }
}

/// The pickle machine: a stack, the marks on it, and a memo of shared values.
#[derive(Default)]
struct Machine {
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

// === impl Machine ===

impl Machine {
    /// Obeys one operation, whose argument is at the front of `bytes`.
    fn step(&mut self, code: u8, bytes: &mut &[u8]) -> Result<(), Malformed> {
        match code {
            0x80 => {
                byte(bytes)?; // the protocol's number: the operations speak for themselves
            }
            b'(' => self.marks.push(self.stack.len()),
            b'q' => self.remember(byte(bytes)?.into())?,
            b'r' => self.remember(u32::from_le_bytes(array(bytes)?))?,
            b'h' => self.recall(byte(bytes)?.into())?,
            b'j' => self.recall(u32::from_le_bytes(array(bytes)?))?,
            b'a' => self.append(self.stack.len().saturating_sub(1))?,
            b'e' => {
                let mark = self.mark()?;
                self.append(mark)?;
            }
            b's' => self.set_items(self.stack.len().saturating_sub(2))?,
            b'u' => {
                let mark = self.mark()?;
                self.set_items(mark)?;
            }
            b'b' => {
                self.pop()?; // attributes of an object, such as a state dict's _metadata: no tensor is among them
            }
            _ => {
                let value = self.make(code, bytes)?;
                self.push(value);
            }
        }
        Ok(())
    }

    /// The value that an operation leaves on the stack.
    fn make(&mut self, code: u8, bytes: &mut &[u8]) -> Result<Value, Malformed> {
        Ok(match code {
            b'N' | 0x88 | 0x89 => Value::Other,
            b'K' => Value::Int(byte(bytes)?.into()),
            b'M' => Value::Int(u16::from_le_bytes(array(bytes)?).into()),
            b'J' => Value::Int(i32::from_le_bytes(array(bytes)?).into()),
            b'G' => {
                take(bytes, 8)?;
                Value::Other
            }
            0x8a => long(bytes)?,
            b'X' => {
                let length = u32::from_le_bytes(array(bytes)?);
                Value::Text(text(take(bytes, length as usize)?)?)
            }
            b'c' => Value::Global(format!("{} {}", line(bytes)?, line(bytes)?)),
            b')' => Value::Tuple(Vec::new()),
            0x85..=0x87 => Value::Tuple(self.split(self.stack.len().wrapping_sub(usize::from(code - 0x84)))?),
            b't' => {
                let mark = self.mark()?;
                Value::Tuple(self.split(mark)?)
            }
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b'Q' => Value::Persistent(self.pop()?),
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                match &self.values[function.0] {
                    Value::Global(name) if name == "collections OrderedDict" => Value::Dict(Vec::new()),
                    _ => Value::Call { function, arguments },
                }
            }
            _ => return Err(Malformed("its pickle has an operation that no checkpoint needs")),
        })
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Id(self.values.len()));
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, Malformed> {
        self.stack.pop().ok_or(UNDERFLOW)
    }

    fn mark(&mut self) -> Result<usize, Malformed> {
        self.marks.pop().ok_or(UNDERFLOW)
    }

    /// Takes everything from `start` upwards off the stack.
    fn split(&mut self, start: usize) -> Result<Vec<Id>, Malformed> {
        if start > self.stack.len() {
            return Err(UNDERFLOW);
        }
        Ok(self.stack.split_off(start))
    }

    fn remember(&mut self, key: u32) -> Result<(), Malformed> {
        let last = self.stack.last().ok_or(UNDERFLOW)?;
        self.memo.insert(key, *last);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Malformed> {
        let id = self.memo.get(&key).ok_or(Malformed("its pickle recalls a value that it never made"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn append(&mut self, start: usize) -> Result<(), Malformed> {
        let mut items = self.split(start)?;
        let list = *self.stack.last().ok_or(UNDERFLOW)?;
        let Value::List(list) = &mut self.values[list.0] else {
            return Err(Malformed("its pickle appends to something that is no list"));
        };
        list.append(&mut items);
        Ok(())
    }

    fn set_items(&mut self, start: usize) -> Result<(), Malformed> {
        let items = self.split(start)?;
        let dict = *self.stack.last().ok_or(UNDERFLOW)?;
        let Value::Dict(dict) = &mut self.values[dict.0] else {
            return Err(Malformed("its pickle sets items of something that is no dict"));
        };
        let (pairs, rest) = items.as_chunks();
        if !rest.is_empty() {
            return Err(Malformed("its pickle has a key without a value"));
        }
        dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }
}

const UNDERFLOW: Malformed = Malformed("its pickle takes more values than it made");

/// Takes `count` bytes off the front.
pub(super) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (front, rest) = bytes.split_at_checked(count).ok_or(Malformed("it ends early"))?;
    *bytes = rest;
    Ok(front)
}

/// Takes an array off the front.
pub(super) fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (front, rest) = bytes.split_first_chunk().ok_or(Malformed("it ends early"))?;
    *bytes = rest;
    Ok(*front)
}

fn byte(bytes: &mut &[u8]) -> Result<u8, Malformed> {
    array::<1>(bytes).map(|[byte]| byte)
}

fn line(bytes: &mut &[u8]) -> Result<String, Malformed> {
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or(Malformed("it ends early"))?;
    let line = text(take(bytes, end)?)?;
    byte(bytes)?;
    Ok(line)
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("a text in its pickle is not UTF-8"))
}

/// A little-endian two's complement number of up to 255 bytes.
fn long(bytes: &mut &[u8]) -> Result<Value, Malformed> {
    let length = byte(bytes)?;
    let digits = take(bytes, length.into())?;
    if digits.len() > 8 {
        return Ok(Value::Other);
    }
    let negative = digits.last().is_some_and(|&byte| byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..digits.len()].copy_from_slice(digits);
    Ok(Value::Int(i64::from_le_bytes(wide)))
}
