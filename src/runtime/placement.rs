//! Which execution provider ONNX Runtime chose for every operator of a session.

use std::ffi::{CStr, c_char};

use ort::AsPointer;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::OrtStatusPtr;

/// What the provider of last resort is called.
const CPU: &str = "CPUExecutionProvider";

/// An operator and where it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The provider, as ONNX Runtime calls it.
    pub provider: String,
    /// Type of the operator.
    pub op: String,
    /// The node's name.
    pub name: String,
}

impl Placed {
    /// Whether the CPU has it.
    pub fn is_on_cpu(&self) -> bool {
        self.provider == CPU
    }

    /// Whether its node has this name, or is one of several that had, which writing a graph numbers (`name~2`).
    pub fn is_called(&self, name: &str) -> bool {
        self.name.split('~').next() == Some(name)
    }
}

/// Has the session keep what [`placement`] tells.
pub(super) fn record(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    Ok(builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?)
}

/// Every operator as it was when it was assigned; passes that run later may have fused some.
pub(super) fn placement(session: &Session) -> ort::Result<Vec<Placed>> {
    let api = ort::api();
    let mut placed = Vec::new();
    // SAFETY: ONNX Runtime owns what it hands out here, and keeps it as long as the session, which outlives this function.
    unsafe {
        let parts =
            listed(|first, count| (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), first, count))?;
        for part in parts {
            let provider = string(|out| (api.EpAssignedSubgraph_GetEpName)(*part, out))?;
            for node in listed(|first, count| (api.EpAssignedSubgraph_GetNodes)(*part, first, count))? {
                placed.push(Placed {
                    provider: provider.clone(),
                    op: string(|out| (api.EpAssignedNode_GetOperatorType)(*node, out))?,
                    name: string(|out| (api.EpAssignedNode_GetName)(*node, out))?,
                });
            }
        }
    }
    Ok(placed)
}

/// An array that ONNX Runtime lends.
///
/// # Safety
/// `get` succeeds only with a pointer to as many elements as it says, valid for `'a`.
unsafe fn listed<'a, T>(
    get: impl FnOnce(*mut *const *const T, *mut usize) -> OrtStatusPtr,
) -> ort::Result<&'a [*const T]> {
    let (mut first, mut count) = (std::ptr::null(), 0);
    // SAFETY: the status is ONNX Runtime's and is taken over here; the array is what the caller vouches for.
    unsafe {
        ort::Error::result_from_status(get(&mut first, &mut count))?;
        Ok(match count {
            0 => &[],
            _ => std::slice::from_raw_parts(first, count),
        })
    }
}

/// A text that ONNX Runtime lends.
///
/// # Safety
/// `get` succeeds only with a C string.
unsafe fn string(get: impl FnOnce(*mut *const c_char) -> OrtStatusPtr) -> ort::Result<String> {
    let mut text = std::ptr::null();
    // SAFETY: as in `listed`.
    unsafe {
        ort::Error::result_from_status(get(&mut text))?;
        Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}
