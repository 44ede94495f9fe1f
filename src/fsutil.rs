//! Files that are either whole or not there.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// How names of files begin that are being written.
const PARTIAL: &str = ".partial-";

/// Removes what writing into `folder` left when the process was killed. For folders that one process writes to at a time.
///
/// # Errors
/// The folder cannot be listed, or a file not be removed.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))? {
        let path = entry.map_err(Error::io(folder, "list the folder"))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(PARTIAL)) && path.is_file() {
            std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Fills `bytes` with what the file holds from `offset` on, from any number of threads at a time.
///
/// # Errors
/// The file ends before, or cannot be read.
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], at)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }
}

/// Writes `bytes` to `path` through a temporary file in the same folder, so that a full disk or a crash leaves either
/// the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// Like [`write_atomically`], for content that is written piece by piece.
pub fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<&std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let temp = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder);
    let temp = temp.map_err(Error::io(path, "write"))?;
    let mut out = std::io::BufWriter::new(temp.as_file());
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(Error::io(path, "write"))?;
    drop(out);
    temp.as_file().sync_all().map_err(Error::io(path, "write"))?;
    #[cfg(unix)]
    {
        // Temporary files are private; what we keep has the usual permissions of a new file.
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        temp.as_file()
            .set_permissions(mode)
            .map_err(Error::io(path, "write"))?;
    }
    temp.persist(path)
        .map_err(|e| Error::io(path, "write")(e.error))?;
    Ok(())
}

/// Refuses a file to be written whose folder is not there, or that is there already and must not be replaced: said
/// before the work, not after it.
///
/// # Errors
/// Either of the two.
pub fn check_output(path: &Path, replace: bool) -> Result<()> {
    let place = || path.display().to_string();
    if path.is_dir() {
        return Err(Error::bad(place(), "is a folder", "Name a file."));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let what = format!("cannot be written: there is no folder {}", folder.display());
        return Err(Error::bad(
            place(),
            what,
            "Make it first, or choose another place.",
        ));
    }
    match path.exists() && !replace {
        false => Ok(()),
        true => Err(Error::bad(
            place(),
            "is there already",
            "Choose another name, or allow it with --replace.",
        )),
    }
}

/// Files of fewer bytes are copied, not linked: people edit them.
const SMALL: u64 = 1 << 20;

/// Puts a file with the content of `from` at `to`: weights as a hard link where the disk allows, so that they exist once;
/// small files as a copy, so that editing one leaves the other.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::metadata(from).map_err(Error::io(from, "read"))?.len();
    if bytes >= SMALL && std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).map(drop).map_err(Error::io(to, "write"))
}
