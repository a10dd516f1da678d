//! Takes lines apart into columns of values. Levels say where in its line each value belongs.
//!
//! The definition level of a value is the number of optional fields and lists on the way to it that are
//! present. Its repetition level is the number of lists that continue with it. This is Parquet's own
//! scheme, after Dremel.

use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::Result;
use parquet::file::writer::SerializedColumnWriter;
use serde_json::Value;

use super::fields::Field;

/// The lines of a row group.
pub(super) struct Columns {
    root: &'static Field,
    columns: Vec<Column>,
    texts: Vec<ByteArray>,
    bytes: usize,
}

struct Column {
    values: Values,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

enum Values {
    Text(Vec<ByteArray>),
    Integer(Vec<i64>),
    /// Unsigned numbers, stored by their bits.
    Bits(Vec<i64>),
    Real(Vec<f64>),
}

/// Where a value belongs in its line.
#[derive(Clone, Copy)]
struct Place {
    column: usize,
    definition: i16,
    repetition: i16,
    /// The number of lists around it.
    lists: i16,
}

impl Columns {
    pub(super) fn new(root: &'static Field) -> Self {
        let mut columns = Vec::new();
        add_leaves(root, &mut columns);
        Self { root, columns, texts: Vec::new(), bytes: 0 }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, line: &Value, text: &str) {
        if let Field::Group(fields) = self.root {
            let mut place = Place { column: 0, definition: 0, repetition: 0, lists: 0 };
            for (name, field) in *fields {
                place.column = self.shred(field, line.get(name), place);
            }
        }
        self.texts.push(ByteArray::from(text.as_bytes().to_vec()));
        self.bytes += text.len();
    }

    /// The number of bytes of the lines.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn lines(&self) -> usize {
        self.texts.len()
    }

    /// Puts a part of a line into its columns. Returns the index of the column after them.
    fn shred(&mut self, field: &Field, value: Option<&Value>, place: Place) -> usize {
        let inside = Place { definition: place.definition + 1, ..place };
        match field {
            Field::Text | Field::Integer | Field::Bits | Field::Real => {
                if let Some(column) = self.columns.get_mut(place.column) {
                    column.push(value, place);
                }
                place.column + 1
            }
            Field::Group(fields) => {
                let object = value.and_then(Value::as_object);
                let mut place = if object.is_some() { inside } else { place };
                for (name, field) in *fields {
                    place.column = self.shred(field, object.and_then(|object| object.get(*name)), place);
                }
                place.column
            }
            Field::List(element) => {
                let Some(list) = value.and_then(Value::as_array) else {
                    return self.shred(element, None, place);
                };
                if list.is_empty() {
                    return self.shred(element, None, inside);
                }
                let mut at = Place { definition: place.definition + 2, lists: place.lists + 1, ..place };
                let mut behind = place.column;
                for one in list {
                    behind = self.shred(element, Some(one), at);
                    at.repetition = at.lists;
                }
                behind
            }
        }
    }

    /// Writes a column of the file. The columns of the fields come first, then the text.
    pub(super) fn write(&self, index: usize, to: &mut SerializedColumnWriter<'_>) -> Result<()> {
        let Some(column) = self.columns.get(index) else {
            to.typed::<ByteArrayType>().write_batch(&self.texts, None, None)?;
            return Ok(());
        };
        let (definitions, repetitions) = (Some(&column.definitions[..]), Some(&column.repetitions[..]));
        match &column.values {
            Values::Text(values) => to.typed::<ByteArrayType>().write_batch(values, definitions, repetitions),
            Values::Integer(values) | Values::Bits(values) => {
                to.typed::<Int64Type>().write_batch(values, definitions, repetitions)
            }
            Values::Real(values) => to.typed::<DoubleType>().write_batch(values, definitions, repetitions),
        }?;
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        for column in &mut self.columns {
            match &mut column.values {
                Values::Text(values) => values.clear(),
                Values::Integer(values) | Values::Bits(values) => values.clear(),
                Values::Real(values) => values.clear(),
            }
            column.definitions.clear();
            column.repetitions.clear();
        }
        self.texts.clear();
        self.bytes = 0;
    }
}

impl Column {
    fn push(&mut self, value: Option<&Value>, place: Place) {
        let there = match &mut self.values {
            Values::Text(values) => {
                let text = value.and_then(Value::as_str);
                values.extend(text.map(|text| ByteArray::from(text.as_bytes().to_vec())));
                text.is_some()
            }
            Values::Integer(values) => {
                let number = value.and_then(Value::as_i64);
                values.extend(number);
                number.is_some()
            }
            Values::Bits(values) => {
                let number = value.and_then(Value::as_u64);
                values.extend(number.map(u64::cast_signed));
                number.is_some()
            }
            Values::Real(values) => {
                let number = value.and_then(Value::as_f64);
                values.extend(number);
                number.is_some()
            }
        };
        self.definitions.push(place.definition + i16::from(there));
        self.repetitions.push(place.repetition);
    }
}

fn add_leaves(field: &Field, columns: &mut Vec<Column>) {
    let values = match field {
        Field::Text => Values::Text(Vec::new()),
        Field::Integer => Values::Integer(Vec::new()),
        Field::Bits => Values::Bits(Vec::new()),
        Field::Real => Values::Real(Vec::new()),
        Field::Group(fields) => {
            fields.iter().for_each(|(_, field)| add_leaves(field, columns));
            return;
        }
        Field::List(element) => return add_leaves(element, columns),
    };
    columns.push(Column { values, definitions: Vec::new(), repetitions: Vec::new() });
}
