//! Switching off ONNX Runtime's reuse of buffers among the values of a run.
//!
//! When a session is built, ONNX Runtime lets values of equal size share a buffer, one after the other. Such a buffer lives from
//! the first value to the last, also while nothing is in it. In a training step, where the forward pass makes what the
//! backward pass frees much later, that keeps much: with buffers given back to the arena after every value, a step of
//! tiny-sd (16 pairs) peaks at 243 MB of activations instead of 295 MB.
//!
//! The switch is a field of ONNX Runtime's `SessionOptions` (`enable_mem_reuse`, in the Python package under this name) for
//! which the C interface has no function. It lies between two fields that have one, `enable_mem_pattern` and
//! `enable_cpu_mem_arena`: their places are found by switching them and looking which byte changes. Where that does not find
//! exactly this layout, nothing is written and buffers are shared as ever.

use std::ptr::NonNull;
use std::sync::OnceLock;

use ort::AsPointer;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtSessionOptions, OrtStatusPtr};

/// Bytes at the start of the options that are looked at; the fields stand in the first 64 on 64-bit systems.
const WINDOW: usize = 128;

/// Switches the reuse off in `builder`, if ONNX Runtime's options are laid out as they are known to be.
pub(super) fn switch_off(builder: &mut SessionBuilder) {
    static PLACE: OnceLock<Option<usize>> = OnceLock::new();
    if let Some(place) = PLACE.get_or_init(find) {
        let options = builder.ptr_mut().cast::<u8>();
        // SAFETY: `place` is within an object of this kind and holds a C++ `bool` that was true in a new one.
        unsafe { options.add(*place).write(0) };
    }
}

/// Where the switch is, in bytes from the start of the options.
fn find() -> Option<usize> {
    let options = Options::new()?;
    let api = ort::api();
    let pattern = options.cleared_by(api.DisableMemPattern)?;
    let arena = options.cleared_by(api.DisableCpuMemArena)?;
    let between = pattern + 1;
    (arena == pattern + 2 && options.bytes()[between] == 1).then_some(between)
}

/// Session options to look at.
struct Options(NonNull<OrtSessionOptions>);

impl Options {
    fn new() -> Option<Self> {
        let mut made = std::ptr::null_mut();
        // SAFETY: a call of ONNX Runtime's own, whose status is taken over below.
        let succeeded = unsafe {
            let status = (ort::api().CreateSessionOptions)(&mut made);
            ort::Error::result_from_status(status).is_ok()
        };
        NonNull::new(made).filter(|_| succeeded).map(Self)
    }

    /// The byte that `switch` turns from 1 to 0, if that is all that it changes.
    fn cleared_by(
        &self,
        switch: unsafe extern "system" fn(*mut OrtSessionOptions) -> OrtStatusPtr,
    ) -> Option<usize> {
        let before = self.bytes();
        // SAFETY: the options are alive; the status is taken over.
        unsafe { ort::Error::result_from_status(switch(self.0.as_ptr())).ok()? };
        let after = self.bytes();
        let mut changed = (0..WINDOW).filter(|i| before[*i] != after[*i]);
        let place = changed.next()?;
        (changed.next().is_none() && before[place] == 1 && after[place] == 0).then_some(place)
    }

    fn bytes(&self) -> [u8; WINDOW] {
        // SAFETY: the object is several times as large: it holds a dozen strings and lists.
        unsafe { self.0.as_ptr().cast::<[u8; WINDOW]>().read() }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by `CreateSessionOptions` and released once.
        unsafe { (ort::api().ReleaseSessionOptions)(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{RuntimeOptions, init};

    #[test]
    fn the_switch_is_found_in_the_runtime_that_setup_brings() {
        init(&RuntimeOptions::default()).unwrap();
        assert!(find().is_some());
    }
}
