//! Finding a reward model by name.

use std::env;
use std::path::{Path, PathBuf};

use super::manifest::FILE_NAME;
use crate::yaml::nearest;
use crate::{Error, Result};

/// Environment variable with folders of reward models, separated as in `PATH`.
pub const VARIABLE: &str = "ORTDPO_REWARDS";

/// Where names are looked up, in this order: `models` in the working directory, the folders that [`VARIABLE`] lists,
/// the user's data directory.
pub fn places() -> Vec<PathBuf> {
    let listed = env::var_os(VARIABLE);
    let listed: Vec<PathBuf> = listed.map_or_else(Vec::new, |list| env::split_paths(&list).collect());
    let own = dirs::data_dir().map(|folder| folder.join("ortdpo").join("rewards"));
    [PathBuf::from("models")]
        .into_iter()
        .chain(listed)
        .chain(own)
        .collect()
}

/// The folder of a reward model: a folder that exists, or a name in one of the [`places`]. A name is the path below the
/// place, `tiny-rewards/clip`, or the last part of it, `clip`.
///
/// # Errors
/// Nothing, or more than one reward of one place, goes by that name; places and known names are listed.
pub fn find(name_or_folder: &str) -> Result<PathBuf> {
    find_in(name_or_folder, &places())
}

fn find_in(name: &str, places: &[PathBuf]) -> Result<PathBuf> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return match folder.join(FILE_NAME).is_file() {
            true => Ok(folder.to_path_buf()),
            false => Err(Error::bad(
                name,
                format!("holds no {FILE_NAME}"),
                "scripts/export_rewards.py writes one; docs/reward.md explains it.",
            )),
        };
    }
    let mut known = Vec::new();
    for place in places {
        let rewards = rewards_below(place);
        let goes_by = |reward: &&String| *reward == name || reward.rsplit('/').next() == Some(name);
        match rewards.iter().filter(goes_by).collect::<Vec<_>>()[..] {
            [] => known.extend(rewards),
            [only] => return Ok(place.join(only)),
            [a, b, ..] => {
                let what = format!("may be {a} or {b} in {}", place.display());
                return Err(Error::bad(
                    format!("reward {name}"),
                    what,
                    "Name it by its longer name.",
                ));
            }
        }
    }
    Err(unknown(name, places, &known))
}

fn unknown(name: &str, places: &[PathBuf], known: &[String]) -> Error {
    let short = known
        .iter()
        .map(|reward| reward.rsplit('/').next().unwrap_or(reward));
    let names: Vec<&str> = known.iter().map(String::as_str).chain(short).collect();
    let guess = nearest(name, &names).map_or(String::new(), |near| format!("Did you mean {near}? "));
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let found = match known.is_empty() {
        true => "no reward models there".to_owned(),
        false => format!("there are {}", known.join(", ")),
    };
    Error::bad(
        format!("reward {name}"),
        format!("is neither a folder nor a name in {}; {found}", places.join(", ")),
        format!("{guess}Give a folder with a {FILE_NAME}, or list folders of them in {VARIABLE}."),
    )
}

/// Rewards in a folder and in its subfolders, by their path below it; nothing where it cannot be read.
fn rewards_below(place: &Path) -> Vec<String> {
    let mut rewards = Vec::new();
    for (name, folder) in subfolders(place) {
        if folder.join(FILE_NAME).is_file() {
            rewards.push(name.clone());
        }
        for (below, folder) in subfolders(&folder) {
            if folder.join(FILE_NAME).is_file() {
                rewards.push(format!("{name}/{below}"));
            }
        }
    }
    rewards.sort();
    rewards
}

fn subfolders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let path = entry.path();
        path.is_dir()
            .then(|| (entry.file_name().to_string_lossy().into_owned(), path))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_place_by_place() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        for reward in ["a/family/clip", "a/pick", "b/clip", "b/one/twin", "b/two/twin"] {
            std::fs::create_dir_all(place(reward)).unwrap();
            std::fs::write(place(reward).join(FILE_NAME), "").unwrap();
        }
        let places = [place("missing"), place("a"), place("b")];
        let find = |name: &str| find_in(name, &places);
        assert_eq!(find("clip").unwrap(), place("a/family/clip"));
        assert_eq!(find("family/clip").unwrap(), place("a/family/clip"));
        assert_eq!(find("two/twin").unwrap(), place("b/two/twin"));
        let folder = place("b/clip");
        assert_eq!(find(folder.to_str().unwrap()).unwrap(), folder);
        let ambiguous = find("twin").unwrap_err().to_string();
        assert!(ambiguous.contains("one/twin or two/twin"), "{ambiguous}");
        let unknown = find("pikc").unwrap_err().to_string();
        assert!(
            unknown.contains("Did you mean pick?") && unknown.contains("family/clip"),
            "{unknown}"
        );
        let empty = find(dir.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(empty.contains("holds no reward.yaml"), "{empty}");
    }
}
