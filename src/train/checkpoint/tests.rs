//! Bit-exact round trips, whole folders or none, damage that is noticed, and other runs that are refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::{Sources, TrainPlan};
use crate::params::Layout;
use crate::train::summary::Versions;

fn plan(set: &[&str]) -> TrainPlan {
    let needed = ["model=m", "data.path=p"];
    let set = needed.iter().chain(set).map(|text| (*text).to_owned()).collect();
    TrainPlan::resolve(&Sources {
        set,
        ..Sources::default()
    })
    .unwrap()
}

fn identity(set: &[&str]) -> RunIdentity {
    let versions = Versions::with_runtime("1.31.1");
    let model = ["unet", "scheduler"].map(|component| (component.to_owned(), format!("{component}'s hash")));
    RunIdentity::new(plan(set).identity(), model.into(), "data".into(), versions)
}

fn state(step: u64) -> RunState {
    RunState {
        step,
        optimizer_steps: step,
        loader: LoaderState::default(),
        rollouts: None,
        timestep: TimestepState { variance: None },
        reference: ReferenceState::default(),
        guard: GuardState::default(),
        loss_scale: None,
        initial: None,
        initial_pictures: [("reward.clip".to_owned(), 0.1 + 0.2)].into(),
        best: Some(Best {
            step,
            value: 0.1 + 0.2,
        }),
        seconds: 1.0 / 3.0,
        identity: identity(&[]),
    }
}

fn layout() -> Arc<Layout> {
    Layout::new([
        ("a.lora_A.weight".to_owned(), vec![2, 3]),
        ("b".to_owned(), vec![5]),
    ])
    .unwrap()
}

/// A set whose values, among them denormal and negative zero, tell it from others.
fn set(seed: u32) -> ParamSet {
    let mut set = ParamSet::zeros(&layout());
    for (index, value) in set.values_mut().iter_mut().enumerate() {
        *value = f32::from_bits(seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u32) & 0xbf7f_ffff);
    }
    set.values_mut()[0] = -0.0;
    set
}

fn save(store: &CheckpointStore, step: u64) -> crate::Result<std::path::PathBuf> {
    let sets: Vec<ParamSet> = (1..=5).map(|seed| set(seed + 10 * step as u32)).collect();
    let tensors = Tensors {
        policy: &sets[0],
        reference: &sets[1],
        initial: &sets[2],
        first_moment: &sets[3],
        second_moment: &sets[4],
        average: None,

        rollouts: None,
    };
    store.save(&state(step), &tensors)
}

fn store(folder: &Path, keep: usize) -> CheckpointStore {
    CheckpointStore::new(folder.join("checkpoints"), keep)
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path(), 3);
    assert_eq!(store.latest().unwrap(), None);
    save(&store, 20).unwrap();
    assert_eq!(store.latest().unwrap(), Some(20));
    let loaded = store.load(20, &layout()).unwrap();
    assert_eq!(loaded.state, state(20));
    let bits = |set: &ParamSet| {
        set.values()
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    let sets = [
        &loaded.policy,
        &loaded.reference,
        &loaded.initial,
        &loaded.first_moment,
        &loaded.second_moment,
    ];
    for (seed, loaded) in (1..=5).zip(sets) {
        assert_eq!(bits(loaded), bits(&set(seed + 200)));
    }
}

#[test]
fn the_newest_stay_in_the_order_of_numbers() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path(), 2);
    for step in [8, 9, 10, 100] {
        save(&store, step).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [10, 100]);
    // A resumed run comes by the same step again.
    save(&store, 100).unwrap();
    assert_eq!(store.steps().unwrap(), [10, 100]);
    assert_eq!(fs::read_dir(temp.path().join("checkpoints")).unwrap().count(), 2);
}

#[test]
fn what_a_killed_run_left_behind_is_no_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path(), 3);
    save(&store, 1).unwrap();
    let unfinished = temp.path().join("checkpoints/.unfinished-2");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("policy.safetensors"), "half").unwrap();
    assert_eq!(store.latest().unwrap(), Some(1));
    save(&store, 2).unwrap();
    assert_eq!((store.steps().unwrap(), unfinished.exists()), (vec![1, 2], false));
}

#[test]
fn every_damaged_byte_is_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path(), 3);
    save(&store, 1).unwrap();
    let folder = save(&store, 2).unwrap();
    let names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(names.len(), 7);
    for path in names {
        let whole = fs::read(&path).unwrap();
        for broken in [whole[..whole.len() - 1].to_vec(), flipped(&whole)] {
            fs::write(&path, broken).unwrap();
            let error = store.load(2, &layout()).unwrap_err().to_string();
            assert!(error.starts_with(folder.to_str().unwrap()), "{error}");
            assert!(error.ends_with("step-2 to resume from step 1."), "{error}");
        }
        fs::write(&path, &whole).unwrap();
        store.load(2, &layout()).unwrap();
    }
}

/// The same bytes with one bit of the middle one changed.
fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

/// The largest file that this process may write is set so low that a checkpoint does not fit, as on a full disk.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_does_not_fit_leaves_the_old_one() {
    const CHILD: &str = "ORTDPO_TEST_FULL_DISK";
    if let Some(folder) = std::env::var_os(CHILD) {
        let store = store(Path::new(&folder), 1);
        let large = ParamSet::zeros(&Layout::new([("a".to_owned(), vec![1 << 20])]).unwrap());
        let tensors = Tensors {
            policy: &large,
            reference: &large,
            initial: &large,
            first_moment: &large,
            second_moment: &large,
            average: None,

            rollouts: None,
        };
        let error = store.save(&state(2), &tensors).unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().contains("policy.safetensors: cannot write"),
            "{error}"
        );
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path(), 1);
    save(&store, 1).unwrap();
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact train::checkpoint::tests::a_checkpoint_that_does_not_fit_leaves_the_old_one";
    let child = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, temp.path())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
    assert_eq!(store.steps().unwrap(), [1]);
    assert_eq!(fs::read_dir(temp.path().join("checkpoints")).unwrap().count(), 1);
    store.load(1, &layout()).unwrap();
}

#[test]
fn other_runs_are_refused_and_told_what_differs() {
    let saved = identity(&[]);
    assert_eq!(
        saved
            .accept(&identity(&["train.keep=1", "runtime.threads=1"]), "step-1")
            .unwrap(),
        [""; 0]
    );

    let other = identity(&["objective.beta=500", "adapter.rank=4"]);
    let error = saved.accept(&other, "step-1").unwrap_err().to_string();
    let expected = "step-1: belongs to another configuration: adapter.rank (8 there, 4 here), adapter.alpha (8.0 there, 4.0 here), objective.beta (2000.0 there, 500.0 here). ";
    assert!(error.starts_with(expected), "{error}");

    let mut moved = identity(&[]);
    moved.model.insert("unet".into(), "another".into());
    moved.model.insert("text_encoder".into(), "new".into());
    let error = saved.accept(&moved, "step-1").unwrap_err().to_string();
    assert!(
        error.contains("another model: the files of unet, text_encoder differ"),
        "{error}"
    );
    assert_ne!(moved.model_hash(), saved.model_hash());
    let mut moved = identity(&[]);
    moved.data_hash = "another".into();
    assert!(
        saved
            .accept(&moved, "step-1")
            .unwrap_err()
            .to_string()
            .contains("other data")
    );

    let mut newer = identity(&[]);
    newer.versions.onnxruntime = "1.32.0".into();
    let notes = saved.accept(&newer, "step-1").unwrap();
    assert!(
        notes.len() == 1 && notes[0].contains("ONNX Runtime 1.31.1, this is 1.32.0"),
        "{notes:?}"
    );
}

#[test]
fn the_first_of_equally_good_evaluations_is_the_best() {
    let mut best = None;
    for (step, acc) in [(10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6)] {
        best = Some(Best::or(best, step, acc));
    }
    assert_eq!(best, Some(Best { step: 20, value: 0.7 }));
}
