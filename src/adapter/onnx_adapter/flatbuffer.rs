//! The bytes of an `.onnx_adapter`: a flatbuffer with the identifier `TORT`.
//!
//! ```text
//! Adapter   { format_version: int, adapter_version: int, model_version: int, parameters: [Parameter] }
//! Parameter { name: string, dims: [int64], data_type: int (ONNX's numbers), raw_data: [ubyte] }
//! ```
//!
//! Two kinds of table of four fields each need no library of generated code: the reader below checks every place before
//! it looks there, and the writer puts raw data at multiples of 64, since ONNX Runtime uses it where it lies in the file.

use std::borrow::Cow;
use std::io::{self, Write};

pub const IDENTIFIER: [u8; 4] = *b"TORT";

/// What ONNX Runtime reads and writes.
const FORMAT_VERSION: u32 = 1;

/// A named tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter<'a> {
    pub name: Cow<'a, str>,
    pub dims: Vec<i64>,
    /// Element type by its number in ONNX.
    pub dtype: i32,
    /// Elements, little-endian and row-major.
    pub data: Cow<'a, [u8]>,
}

/// The parameters in `bytes`; `None` if they point outside of it or are no such file.
pub fn read(bytes: &[u8]) -> Option<Vec<Parameter<'_>>> {
    let buffer = Buffer(bytes);
    if bytes.get(4..8)? != IDENTIFIER {
        return None;
    }
    let adapter = buffer.pointed(0)?;
    let Some(field) = buffer.field(adapter, 3)? else {
        return Some(Vec::new());
    };
    let list = buffer.pointed(field)?;
    let count = buffer.u32(list)? as usize;
    let parameter = |index: usize| {
        let table = buffer.pointed(list + 4 + 4 * index)?;
        let vector = |field: usize, size: usize| match buffer.field(table, field)? {
            Some(place) => buffer.vector(buffer.pointed(place)?, size),
            None => Some(&[][..]),
        };
        let dims = vector(1, 8)?.chunks_exact(8);
        Some(Parameter {
            name: std::str::from_utf8(vector(0, 1)?).ok()?.into(),
            dims: dims
                .map(|d| i64::from_le_bytes(d.try_into().expect("chunks of 8")))
                .collect(),
            dtype: match buffer.field(table, 2)? {
                Some(place) => buffer.u32(place)? as i32,
                None => 0,
            },
            data: vector(3, 1)?.into(),
        })
    };
    (0..count).map(parameter).collect()
}

struct Buffer<'a>(&'a [u8]);

impl<'a> Buffer<'a> {
    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn u16(&self, at: usize) -> Option<usize> {
        let bytes = self.0.get(at..at.checked_add(2)?)?;
        Some(usize::from(u16::from_le_bytes(bytes.try_into().ok()?)))
    }

    /// Where the offset at `at` points, counted from itself.
    fn pointed(&self, at: usize) -> Option<usize> {
        at.checked_add(self.u32(at)? as usize)
    }

    /// Where a table has its field: its list of fields lies so many bytes before it as its first number says, and begins
    /// with its own length. `Some(None)`: the field is left out.
    fn field(&self, table: usize, index: usize) -> Option<Option<usize>> {
        let back = i64::from(self.u32(table)? as i32);
        let fields = usize::try_from(i64::try_from(table).ok()? - back).ok()?;
        let entry = 4 + 2 * index;
        if entry + 2 > self.u16(fields)? {
            return Some(None);
        }
        let offset = self.u16(fields + entry)?;
        Some((offset != 0).then_some(table + offset))
    }

    /// The elements, of `size` bytes each, of the vector at `at`.
    fn vector(&self, at: usize, size: usize) -> Option<&'a [u8]> {
        let length = (self.u32(at)? as usize).checked_mul(size)?;
        let start = at.checked_add(4)?;
        self.0.get(start..start.checked_add(length)?)
    }
}

/// Both kinds of table have four fields of four bytes each, so they share one list of fields.
const FIELDS: [u16; 6] = [12, 20, 4, 8, 12, 16];
const FIELDS_AT: usize = 8;
const ADAPTER_AT: usize = 20;
const LIST_AT: usize = 40;
const TABLE: usize = 20;

/// Multiple at which raw data begins.
const ALIGNMENT: usize = 64;

/// Where everything of a parameter begins.
struct Places {
    table: usize,
    name: usize,
    dims: usize,
    data: usize,
}

/// Where everything of a file begins: offsets point forward, so all must be known before the first byte is written.
pub struct Layout(Vec<Places>);

impl Layout {
    /// The layout of a file of `parameters`: tables, names and shapes, then the data. `None` if it is too large for the
    /// format's offsets.
    pub fn of(parameters: &[Parameter<'_>]) -> Option<Self> {
        let mut at = LIST_AT + 4 + 4 * parameters.len();
        let mut places = Vec::new();
        for parameter in parameters {
            let table = at;
            let name = table + TABLE;
            // Behind its length and before its closing zero; the shape's numbers begin at a multiple of eight.
            let dims = (name + 4 + parameter.name.len() + 1 + 4).next_multiple_of(8) - 4;
            at = dims + 4 + 8 * parameter.dims.len();
            places.push(Places {
                table,
                name,
                dims,
                data: 0,
            });
        }
        for (place, parameter) in places.iter_mut().zip(parameters) {
            place.data = (at + 4).next_multiple_of(ALIGNMENT) - 4;
            at = place.data + 4 + parameter.data.len();
        }
        i32::try_from(at).is_ok().then_some(Self(places))
    }

    /// Writes the file.
    pub fn write(&self, parameters: &[Parameter<'_>], out: &mut impl Write) -> io::Result<()> {
        let mut out = Counted { out, at: 0 };
        out.offset_to(ADAPTER_AT)?;
        out.bytes(&IDENTIFIER)?;
        for field in FIELDS {
            out.bytes(&field.to_le_bytes())?;
        }
        out.number(ADAPTER_AT - FIELDS_AT)?;
        out.number(FORMAT_VERSION as usize)?;
        // Versions of adapter and model are their makers' own to count.
        out.number(1)?;
        out.number(1)?;
        out.offset_to(LIST_AT)?;
        out.number(self.0.len())?;
        for place in &self.0 {
            out.offset_to(place.table)?;
        }
        for (place, parameter) in self.0.iter().zip(parameters) {
            out.pad_to(place.table)?;
            out.number(place.table - FIELDS_AT)?;
            out.offset_to(place.name)?;
            out.offset_to(place.dims)?;
            out.bytes(&parameter.dtype.to_le_bytes())?;
            out.offset_to(place.data)?;
            out.number(parameter.name.len())?;
            out.bytes(parameter.name.as_bytes())?;
            out.pad_to(place.dims)?;
            out.number(parameter.dims.len())?;
            for dim in &parameter.dims {
                out.bytes(&dim.to_le_bytes())?;
            }
        }
        for (place, parameter) in self.0.iter().zip(parameters) {
            out.pad_to(place.data)?;
            out.number(parameter.data.len())?;
            out.bytes(&parameter.data)?;
        }
        Ok(())
    }
}

/// A writer that knows how far it is.
struct Counted<'a, W> {
    out: &'a mut W,
    at: usize,
}

impl<W: Write> Counted<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.out.write_all(bytes)
    }

    /// A number below 2³¹, which the layout has seen to.
    fn number(&mut self, number: usize) -> io::Result<()> {
        self.bytes(&(number as u32).to_le_bytes())
    }

    fn offset_to(&mut self, place: usize) -> io::Result<()> {
        self.number(place - self.at)
    }

    fn pad_to(&mut self, place: usize) -> io::Result<()> {
        (self.at..place).try_for_each(|_| self.bytes(&[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Vec<Parameter<'static>> {
        let parameter = |name: &'static str, dims: &[i64], dtype, data: &[u8]| Parameter {
            name: name.into(),
            dims: dims.to_vec(),
            dtype,
            data: data.to_vec().into(),
        };
        vec![
            parameter("yy", &[3], 10, &[0, 0, 0, 0x3c, 0, 0x40]),
            parameter("x.lora_A", &[2, 1], 1, &[0, 0, 0, 0, 0, 0, 0x80, 0x3f]),
        ]
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        let parameters = parameters();
        Layout::of(&parameters)
            .unwrap()
            .write(&parameters, &mut bytes)
            .unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = written();
        let read = read(&bytes).unwrap();
        assert_eq!(read, parameters());
        for parameter in read {
            let start = parameter.data.as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(start % ALIGNMENT, 0);
        }
    }

    #[test]
    fn no_damage_is_read_outside_of_the_bytes() {
        let whole = written();
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let _ = read(&damaged);
            }
        }
    }
}
