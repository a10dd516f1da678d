//! The values of a GGUF file's metadata.

use std::ops::Range;

use super::cursor::Cursor;
use crate::error::ModelError;

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// A list of values of one kind. The values stay in the file until they are asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct List {
    pub kind: Kind,
    pub count: usize,
    /// Where they are in the file. Their sizes were checked.
    pub range: Range<usize>,
}

/// The kinds of values, under the numbers that they have in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Text = 8,
    List = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::Text,
        Kind::List,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Kind, ModelError> {
        let number = cursor.u32(&format!("the kind of value of the key `{key}`"))?;
        Kind::ALL.into_iter().find(|kind| *kind as u32 == number).ok_or_else(|| {
            cursor.damaged(format!("the key `{key}` has a value of kind {number}; there are kinds 0 to 12"))
        })
    }

    /// The bytes of a value, where all values of the kind have as many.
    fn size(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::List => None,
        }
    }
}

impl Value {
    /// Reads the value of `key`: its kind, then itself.
    pub fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, ModelError> {
        let kind = Kind::read(cursor, key)?;
        Value::of_kind(cursor, kind, &format!("the value of the key `{key}`"), key)
    }

    fn of_kind(cursor: &mut Cursor<'_>, kind: Kind, what: &str, key: &str) -> Result<Value, ModelError> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(cursor.u8(what)?.into()),
            Kind::I8 => Value::Signed((cursor.u8(what)? as i8).into()),
            Kind::U16 => Value::Unsigned(cursor.u16(what)?.into()),
            Kind::I16 => Value::Signed((cursor.u16(what)? as i16).into()),
            Kind::U32 => Value::Unsigned(cursor.u32(what)?.into()),
            Kind::I32 => Value::Signed((cursor.u32(what)? as i32).into()),
            Kind::F32 => Value::Float(f32::from_bits(cursor.u32(what)?).into()),
            Kind::Bool => Value::Bool(cursor.u8(what)? != 0),
            Kind::Text => Value::Text(cursor.text(what)?.to_owned()),
            Kind::List => Value::List(List::read(cursor, what, key)?),
            Kind::U64 => Value::Unsigned(cursor.u64(what)?),
            Kind::I64 => Value::Signed(cursor.u64(what)? as i64),
            Kind::F64 => Value::Float(f64::from_bits(cursor.u64(what)?)),
        })
    }
}

impl List {
    fn read(cursor: &mut Cursor<'_>, what: &str, key: &str) -> Result<List, ModelError> {
        let kind = Kind::read(cursor, key)?;
        let count = cursor.u64(what)?;
        let start = cursor.at();
        match kind.size() {
            // The product may wrap round to a small one.
            Some(size) => drop(cursor.take(count.saturating_mul(size), what)?),
            None if kind == Kind::Text => {
                // Each string takes 8 bytes at least, so that the file ends before a count that lies does.
                for _ in 0..count {
                    cursor.string(what)?;
                }
            }
            None => return Err(cursor.damaged(format!("{what} is a list of lists, which no key has"))),
        }
        // What was read fits in memory, and a value takes a byte at least.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(List { kind, count, range: start..cursor.at() })
    }
}
