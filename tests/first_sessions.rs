//! The first sessions of a process, made by two threads at once: without care, ONNX Runtime fails one of twenty times.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use ortdpo::runtime::{RuntimeOptions, Session, SessionOptions, init};

#[test]
fn two_threads_make_them_at_once() {
    for _ in 0..60 {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_process", "--ignored"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
#[ignore = "is run by the other one, in processes that have no session yet"]
fn one_process() {
    init(&RuntimeOptions::default()).unwrap();
    let model = common::fixtures().join("runtime").join("affine.onnx");
    let waiting = AtomicUsize::new(2);
    let make = || {
        // Not a barrier, which wakes one thread after the other.
        waiting.fetch_sub(1, Ordering::SeqCst);
        while waiting.load(Ordering::SeqCst) > 0 {
            std::hint::spin_loop();
        }
        Session::from_file(&model, &SessionOptions::default()).map(|_| ())
    };
    std::thread::scope(|scope| {
        for thread in [scope.spawn(make), scope.spawn(make)] {
            thread.join().unwrap().unwrap();
        }
    });
}
