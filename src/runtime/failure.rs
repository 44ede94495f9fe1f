//! ONNX Runtime's errors in our words: who has to act decides the kind.
//!
//! Its codes alone do not tell: most troubles with model files come as a general failure, so the text is
//! looked at, too. A text that is not known is passed on whole.

use ort::ErrorCode;

use crate::Error;

/// Turns an error of ONNX Runtime met while doing something with `place` (a file, a graph) into ours.
pub(super) fn failure<R>(place: &str, error: ort::Error<R>) -> Error {
    let message = one_line(error.message());
    if let Some(error) = bad_file(place, &message) {
        return error;
    }
    match error.code() {
        ErrorCode::InvalidProtobuf | ErrorCode::NoModel => not_a_model(place),
        ErrorCode::NoSuchFile => {
            Error::bad(place, format!("a file is missing: {message}"), "Check the path.")
        }
        ErrorCode::InvalidGraph => Error::bad(
            place,
            format!("is not a valid ONNX graph: {message}"),
            "Export the model again, or report the exporter's fault.",
        ),
        ErrorCode::NotImplemented => Error::bad(
            place,
            format!("uses an operator that this ONNX Runtime does not implement: {message}"),
            "Export with another opset or precision, or run on another execution provider.",
        ),
        _ => Error::Runtime(format!("{place}: {message}")),
    }
}

fn not_a_model(place: &str) -> Error {
    Error::bad(
        place,
        "is not an ONNX model, or only a part of one",
        "Export or download the file again.",
    )
}

/// Troubles with files that come without a code of their own.
fn bad_file(place: &str, message: &str) -> Option<Error> {
    let part = |from: &str, to: &str| {
        let (_, rest) = message.split_once(from)?;
        rest.split_once(to).map(|(part, _)| part)
    };
    if message.contains("No graph was found") || message.contains("Missing opset in the model") {
        return Some(not_a_model(place));
    }
    if message.contains("External data path validation failed") {
        let weight = part("for initializer: ", ". Error").unwrap_or("a weight");
        let file = part("does not exist: \"", "\"").unwrap_or(message);
        return Some(Error::bad(
            place,
            format!("the file with the values of `{weight}` is missing: {file}"),
            "A model's data files must lie beside it, under the names they were exported with.",
        ));
    }
    if message.contains("out of bounds or can not be read in full") {
        let weight = part("External initializer: ", " offset").unwrap_or("a weight");
        let needed = part(" offset: ", " are out of bounds").unwrap_or(message);
        return Some(Error::bad(
            place,
            format!("the file with the values of `{weight}` is too short: offset {needed}"),
            "Copy or download the model's data files again.",
        ));
    }
    None
}

/// The message on one line, without the C++ call chain that may precede it.
pub(super) fn one_line(message: &str) -> String {
    let said = message
        .rsplit_once("[ONNXRuntimeError] : ")
        .and_then(|(_, coded)| coded.splitn(3, " : ").nth(2));
    said.unwrap_or(message)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        // A remedy follows, or nothing.
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_chain_is_left_out() {
        let raw = "/onnxruntime_src/bridge.cc:2043 onnxruntime::Provider& Get() [ONNXRuntimeError] : 1 : FAIL : \
                   Failed to load library a.so with error: b.so : missing\n";
        assert_eq!(
            one_line(raw),
            "Failed to load library a.so with error: b.so : missing"
        );
        assert_eq!(one_line("two\nlines."), "two lines");
    }
}
