//! Entries written, read, damaged and mended.

use ndarray::Array;

use super::*;

fn key(number: u32) -> Key {
    Key::of(&[&number.to_le_bytes()])
}

fn tensor(number: u32) -> ArrayD<f32> {
    Array::from_shape_fn((2, 3, 4), |(a, b, c)| {
        number as f32 + (a * 12 + b * 4 + c) as f32 / 100.0
    })
    .into_dyn()
}

fn fill(store: &mut Store, numbers: std::ops::Range<u32>) {
    let mut writer = store.writer_with(1000, || {}).unwrap();
    for number in numbers {
        writer
            .append(key(number), &[tensor(number).view(), tensor(number + 1).view()])
            .unwrap();
    }
    writer.finish().unwrap();
}

fn sound(store: &Store, numbers: std::ops::Range<u32>) -> usize {
    numbers
        .filter(|&n| {
            store
                .read(key(n))
                .is_some_and(|read| read == [tensor(n), tensor(n + 1)])
        })
        .count()
}

#[test]
fn entries_come_back_over_several_shards_and_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path().join("new/folder")).unwrap();
    assert!(store.is_empty());
    fill(&mut store, 0..10);
    assert_eq!(sound(&store, 0..10), 10);
    fill(&mut Store::open(dir.path().join("new/folder")).unwrap(), 10..23);
    let store = Store::open(dir.path().join("new/folder")).unwrap();
    assert_eq!((store.len(), sound(&store, 0..23)), (23, 23));
    assert!(store.shards.len() > 3, "1000-byte shards hold few entries");
    assert_eq!(store.open.lock().unwrap().len(), store.shards.len());
    assert!(store.read(key(23)).is_none());
}

#[test]
fn few_files_are_open_however_many_shards_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    fill(&mut store, 0..200);
    assert!(store.shards.len() > OPEN_FILES);
    assert_eq!(sound(&store, 0..200), 200);
    assert_eq!(store.open.lock().unwrap().len(), OPEN_FILES);
    assert_eq!(sound(&store, 0..1), 1);
    assert_eq!(store.open.lock().unwrap()[0].0, 0, "the latest comes first");
}

#[test]
fn files_that_are_cut_off_or_removed_while_they_are_read_are_damaged_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    fill(&mut store, 0..10);
    let shard = |number: u32| dir.path().join(format!("shard-{number:04}.bin"));
    let file = OpenOptions::new().write(true).open(shard(0)).unwrap();
    file.set_len(100).unwrap();
    fs::remove_file(shard(1)).unwrap();
    let all: Vec<Key> = (0..10).map(key).collect();
    let damaged = store.damaged(&all);
    assert!(damaged.iter().any(|key| store.place(*key) == shard(0)));
    assert!(
        damaged
            .iter()
            .all(|key| [shard(0), shard(1)].contains(&store.place(*key)))
    );
    assert_eq!(sound(&store, 0..10), 10 - damaged.len());
}

#[test]
fn an_interrupted_run_leaves_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let mut writer = store.writer(|| {}).unwrap();
    writer
        .append(key(0), &[tensor(0).view(), tensor(1).view()])
        .unwrap();
    writer.commit().unwrap();
    writer
        .append(key(1), &[tensor(1).view(), tensor(2).view()])
        .unwrap();
    drop(writer);
    // A crash may also leave half a record and half a payload behind.
    let half = |name: &str| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(dir.path().join(name))
            .unwrap();
        file.write_all(&[7; 13]).unwrap();
    };
    half("shard-0000.bin");
    half("shard-0000.idx");
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!((store.len(), sound(&store, 0..1)), (1, 1));
    fill(&mut store, 1..4);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!((store.len(), sound(&store, 0..4)), (4, 4));
}

#[test]
fn damage_is_found_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    fill(&mut store, 0..3);
    drop(store);
    let path = dir.path().join("shard-0000.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let keys = [key(0), key(1), key(2)];
    assert_eq!(store.damaged(&keys), [key(0)]);
    assert!(store.read(key(0)).is_none() && store.contains(key(0)));
    store.forget(&[key(0)]);
    assert!(!store.contains(key(0)));
    fill(&mut store, 0..1);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!((store.damaged(&keys).len(), sound(&store, 0..3)), (0, 3));
}

#[test]
fn a_shard_cut_short_loses_only_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    fill(&mut store, 0..3);
    drop(store);
    let file = OpenOptions::new()
        .write(true)
        .open(dir.path().join("shard-0000.bin"))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!((store.len(), sound(&store, 0..2)), (2, 2));
    fill(&mut store, 2..3);
    assert_eq!(sound(&Store::open(dir.path()).unwrap(), 0..3), 3);
}

/// Records of a shard that was deleted do not come to mean what is written in its place.
#[test]
fn a_shard_that_is_deleted_takes_its_records_along() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut Store::open(dir.path()).unwrap(), 0..3);
    fs::remove_file(dir.path().join("shard-0000.bin")).unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert!(store.is_empty());
    fill(&mut store, 10..14);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!((store.len(), sound(&store, 10..14)), (4, 4));
    assert!((0..3).all(|n| !store.contains(key(n))));
}

#[test]
fn writers_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Store::open(dir.path()).unwrap();
    let mut writer = first.writer(|| panic!("nobody else writes")).unwrap();
    writer
        .append(key(0), &[tensor(0).view(), tensor(1).view()])
        .unwrap();
    let (waits, waited) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut second = Store::open(dir.path()).unwrap();
            let mut writer = second.writer(move || waits.send(()).unwrap()).unwrap();
            assert!(
                writer.store().contains(key(0)),
                "the first writer's entries are seen"
            );
            writer
                .append(key(1), &[tensor(1).view(), tensor(2).view()])
                .unwrap();
            writer.finish().unwrap();
        });
        waited.recv().unwrap();
        writer.finish().unwrap();
    });
    assert_eq!(sound(&Store::open(dir.path()).unwrap(), 0..2), 2);
}
