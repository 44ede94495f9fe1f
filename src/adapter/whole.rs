//! Whether a file of weights is all there, by its head alone.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, placeholder};

/// Larger headers are not allowed: what looks like one is something else.
const HEADER: u64 = 100_000_000;

/// Checks that the safetensors file at `path` has a header, and as many bytes as that tells of. No tensor is read.
///
/// # Errors
/// It is cut off, or is no such file.
pub fn check_safetensors(path: &Path) -> Result<()> {
    let place = || path.display().to_string();
    let cut_off = |what: String| {
        let remedy = "Copy or download it again: the rest is missing.";
        Err(Error::bad(place(), format!("is cut off{what}"), remedy))
    };
    let foreign = |why: &str| {
        let remedy = "Give a safetensors file as diffusers, PEFT or this program write it.";
        let what = format!("is not a safetensors file: {why}");
        Err(Error::bad(place(), what, remedy))
    };
    placeholder::check(path)?;
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    let size = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut length = [0; 8];
    if size < 8 {
        return foreign(&format!("it has {size} bytes"));
    }
    file.read_exact(&mut length).map_err(Error::io(path, "read"))?;
    let length = u64::from_le_bytes(length);
    if length >= HEADER {
        return foreign("it does not begin with the length of a header");
    }
    let mut header = Vec::new();
    file.take(length)
        .read_to_end(&mut header)
        .map_err(Error::io(path, "read"))?;
    if (header.len() as u64) < length && header.first() == Some(&b'{') {
        return cut_off(format!(" after {size} bytes, within its header"));
    }
    let Ok(header) = serde_json::from_slice::<Map<String, Value>>(&header) else {
        return foreign("its header is no JSON object");
    };
    let end = |entry: &Value| entry.get("data_offsets")?.get(1)?.as_u64();
    let end = header.values().filter_map(end).max().unwrap_or(0);
    let expected = (8 + length).saturating_add(end);
    match size.cmp(&expected) {
        std::cmp::Ordering::Less => cut_off(format!(": it has {size} bytes of {expected}")),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => foreign(&format!("{} bytes follow its last tensor", size - expected)),
    }
}
