//! What people have in the place of a large file: the pointer that Git leaves without LFS, or the web page that a download
//! ended in.

use std::path::Path;

use crate::{Error, Result};

/// Bytes from a file's beginning that are enough to tell.
pub const HEAD: usize = 512;

const LFS: &str = "version https://git-lfs.github.com/spec/v1";
const PAGES: [&str; 3] = ["<!doctype html", "<html", "<?xml"];

/// Refuses the file at `path`, which begins with `head`, if something else was put in its place.
///
/// # Errors
/// It is a Git LFS pointer or a web page.
pub fn refuse(path: &Path, head: &[u8]) -> Result<()> {
    let head = String::from_utf8_lossy(&head[..head.len().min(HEAD)]);
    let bad = |what: String, remedy: &str| Err(Error::bad(path.display().to_string(), what, remedy));
    if head.starts_with(LFS) {
        let size = head.lines().find_map(|line| line.strip_prefix("size "));
        let size = size.map_or_else(String::new, |size| format!(" to its {size} bytes"));
        return bad(
            format!("is a Git LFS pointer{size}, not the file itself"),
            "Run `git lfs pull` where it was cloned, or download the file again.",
        );
    }
    let text = head.trim_start_matches('\u{feff}').trim_start().to_lowercase();
    match PAGES.iter().any(|page| text.starts_with(page)) {
        true => bad(
            "is a web page, saved in place of the file".to_owned(),
            "Download the file again, by its direct link and logged in where that is needed.",
        ),
        false => Ok(()),
    }
}

/// As [`refuse`], reading the head.
///
/// # Errors
/// Also when the file cannot be read.
pub fn check(path: &Path) -> Result<()> {
    refuse(path, &head_of(path)?)
}

fn head_of(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(Error::io(path, "read"))?;
    let mut head = Vec::with_capacity(HEAD);
    file.take(HEAD as u64)
        .read_to_end(&mut head)
        .map_err(Error::io(path, "read"))?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_pages_are_told_from_files() {
        let said = |head: &[u8]| refuse(Path::new("model.onnx"), head).map_err(|error| error.to_string());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n";
        let text = said(pointer).unwrap_err();
        assert!(
            text.starts_with("model.onnx: is a Git LFS pointer to its 3438167540 bytes")
                && text.contains("git lfs pull"),
            "{text}"
        );
        for page in [
            "<!DOCTYPE html>\n<html>",
            "\u{feff} \n<HTML lang=en>",
            "<?xml version='1.0'?><Error>",
        ] {
            assert!(
                said(page.as_bytes()).unwrap_err().contains("is a web page"),
                "{page}"
            );
        }
        for file in [&b""[..], b"\x08\x08\x12\x07pytorch", b"{\"a\": 1}", b"version 1"] {
            assert!(said(file).is_ok());
        }
    }
}
