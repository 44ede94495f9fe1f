//! `ortdpo derive` and `ortdpo show` as users run them.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use ortdpo::onnx::{self, Constant, Graph, TensorData, TensorType};
use ortdpo::runtime::{self, Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use serde_json::Value;

mod common;

/// A folder with a model whose weights lie in a file of their own: `y = x·scale + shift`, `x` of shape [rows, 2].
fn affine(folder: &Path) -> PathBuf {
    for file in ["affine.onnx", "affine.data"] {
        std::fs::copy(common::fixtures().join("runtime").join(file), folder.join(file)).unwrap();
    }
    folder.join("affine.onnx")
}

fn derive(folder: &Path, arguments: &[&str]) -> Output {
    common::ortdpo(folder)
        .arg("derive")
        .args(arguments)
        .output()
        .unwrap()
}

/// The one paragraph of a run that had to fail, after checking that it wrote nothing.
fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let before = entries(folder);
    let output = derive(folder, arguments);
    let text = common::stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.starts_with("error: ") && !text.contains("panic"), "{text}");
    assert_eq!(common::stdout(&output), "");
    assert_eq!(entries(folder), before, "files were written");
    text
}

fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

const DERIVE: [&str; 5] = ["affine.onnx", "-o", "out.onnx", "--dim", "batch=2"];

#[test]
fn a_derived_model_runs_in_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    // Into a folder of its own: the weights have to come along.
    std::fs::create_dir(folder.path().join("derived")).unwrap();
    let arguments = [
        "affine.onnx",
        "-o",
        "derived/out.onnx",
        "--dim",
        "batch=2",
        "--wrt",
        "x,weight,bias",
    ];
    let output = derive(folder.path(), &arguments);
    assert!(output.status.success(), "{}", common::stderr(&output));
    assert!(
        common::stdout(&output).contains("3 tensors of 14 elements"),
        "{}",
        common::stdout(&output)
    );

    runtime::init(&Default::default()).unwrap();
    let path = folder.path().join("derived/out.onnx");
    let mut session = Session::from_file(&path, &SessionOptions::default()).unwrap();
    let shape = |io: &runtime::IoInfo| (io.name.clone(), io.static_shape().unwrap());
    let inputs: Vec<_> = session.inputs().iter().map(shape).collect();
    assert_eq!(
        inputs,
        [
            ("x".to_owned(), vec![2, 3]),
            ("y.cotangent".to_owned(), vec![2, 2])
        ]
    );
    let outputs: Vec<_> = session.outputs().iter().map(|io| io.name.clone()).collect();
    assert_eq!(outputs, ["y", "x.grad", "weight.grad", "bias.grad"]);

    let x = Tensor::f32(&[2, 3], vec![1.0, 2.0, 3.0, -1.0, 0.5, 2.0]);
    let dy = Tensor::f32(&[2, 2], vec![1.0, -1.0, 2.0, 0.5]);
    let mut found = session.run(&[("x", &x), ("y.cotangent", &dy)]).unwrap();
    // y = x·W + b with bias [10, 20]: db sums the cotangent over the rows, dW = xᵀ·dy.
    let bias = found.take("bias.grad").unwrap();
    assert_eq!(bias, Tensor::f32(&[2], vec![3.0, -0.5]));
    let weight = found.take("weight.grad").unwrap();
    assert_eq!(
        weight,
        Tensor::f32(&[3, 2], vec![-1.0, -1.5, 3.0, -1.75, 7.0, -2.0])
    );
}

/// `y = x·W` with a weight of `columns` columns in the data file `data/weights.bin` below `folder`, which holds zeros.
fn with_data_below(folder: &Path, columns: usize) -> PathBuf {
    let length = 2 * columns as u64 * 4;
    std::fs::create_dir(folder.join("data")).unwrap();
    let file = folder.join("data/weights.bin");
    // The file system keeps no zeros that were never written.
    std::fs::File::create(&file).unwrap().set_len(length).unwrap();
    let mut g = Graph::new("large", 17);
    let x = g.add_input("x", TensorType::new(DType::F32, [1, 2]));
    let data = TensorData::External {
        file: Arc::new(file),
        offset: 0,
        length,
    };
    let weight = Constant {
        dtype: DType::F32,
        shape: vec![2, columns],
        data,
    };
    let weight = g.add_constant("weight", weight);
    let y = g.matmul(x, weight).unwrap();
    let y = g.as_output(y, "y").unwrap();
    g.outputs.push(y);
    let model = folder.join("large.onnx");
    onnx::save(&g, &model).unwrap();
    model
}

#[test]
fn weights_in_a_folder_below_are_found_by_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    with_data_below(folder.path(), 3);
    let output = derive(folder.path(), &["large.onnx", "-o", "out.onnx"]);
    assert!(output.status.success(), "{}", common::stderr(&output));
    assert_eq!(entries(folder.path()), ["data", "large.onnx", "out.onnx"]);
    runtime::init(&Default::default()).unwrap();
    let mut session =
        Session::from_file(&folder.path().join("out.onnx"), &SessionOptions::default()).unwrap();
    let (x, dy) = (
        Tensor::f32(&[1, 2], vec![1.0, 2.0]),
        Tensor::f32(&[1, 3], vec![1.0, -1.0, 0.5]),
    );
    let mut found = session.run(&[("x", &x), ("y.cotangent", &dy)]).unwrap();
    let gradient = Tensor::f32(&[2, 3], vec![1.0, -1.0, 0.5, 2.0, -2.0, 1.0]);
    assert_eq!(found.take("weight.grad").unwrap(), gradient);
}

#[test]
#[cfg(unix)]
fn weights_of_more_than_2_gb_are_linked_not_copied() {
    use std::os::unix::fs::MetadataExt;
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = with_data_below(source.path(), 300_000_000);
    let out = target.path().join("out.onnx");
    let arguments = [model.to_str().unwrap(), "-o", out.to_str().unwrap(), "--wrt", "x"];
    let output = derive(source.path(), &arguments);
    assert!(output.status.success(), "{}", common::stderr(&output));
    assert!(std::fs::metadata(&out).unwrap().len() < 10_000);
    let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(target.path().join("weights.bin")),
        inode(source.path().join("data/weights.bin"))
    );
}

#[test]
fn merged_parameters_have_one_gradient_or_one_each() {
    let folder = tempfile::tempdir().unwrap();
    // y = x·w + x·x·w′, where w′ is the same initializer handed on by an Identity, as the legacy exporter writes it.
    let mut g = Graph::new("merged", 17);
    let x = g.add_input("x", TensorType::new(DType::F32, [2]));
    let w = g.add_constant("w", Constant::floats(DType::F32, &[2], &[1.0, 2.0]));
    let other = g.as_output(w, "w_other").unwrap();
    let (square, first) = (g.mul(x, x).unwrap(), g.mul(x, w).unwrap());
    let second = g.mul(square, other).unwrap();
    let y = g.add(first, second).unwrap();
    let y = g.as_output(y, "y").unwrap();
    g.outputs.push(y);
    onnx::save(&g, &folder.path().join("merged.onnx")).unwrap();

    runtime::init(&Default::default()).unwrap();
    let gradients = |arguments: &[&str], names: &[&str]| -> Vec<Tensor> {
        let output = derive(
            folder.path(),
            &[&["merged.onnx", "-o", "out.onnx"], arguments].concat(),
        );
        assert!(output.status.success(), "{}", common::stderr(&output));
        let mut session =
            Session::from_file(&folder.path().join("out.onnx"), &SessionOptions::default()).unwrap();
        assert_eq!(session.outputs().len(), 1 + names.len());
        let (x, dy) = (
            Tensor::f32(&[2], vec![3.0, 5.0]),
            Tensor::f32(&[2], vec![1.0, 10.0]),
        );
        let mut found = session.run(&[("x", &x), ("y.cotangent", &dy)]).unwrap();
        names.iter().map(|name| found.take(name).unwrap()).collect()
    };
    assert_eq!(
        gradients(&[], &["w.grad"]),
        [Tensor::f32(&[2], vec![12.0, 300.0])]
    );
    let each = gradients(&["--split-shared"], &["w.grad", "w_other.grad"]);
    assert_eq!(
        each,
        [
            Tensor::f32(&[2], vec![3.0, 50.0]),
            Tensor::f32(&[2], vec![9.0, 250.0])
        ]
    );
}

#[test]
fn the_summary_is_there_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let output = derive(folder.path(), &[&DERIVE[..], &["--format", "json"]].concat());
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["opset"], 17);
    assert_eq!(summary["inputs"][1]["name"], "y.cotangent");
    let gradients: Vec<_> = summary["gradients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["output"])
        .collect();
    assert_eq!(gradients, ["weight.grad", "bias.grad"]);
    assert_eq!(summary["gradients"][0]["shape"], serde_json::json!([3, 2]));
}

#[test]
fn files_that_are_no_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = affine(folder.path());
    let bytes = std::fs::read(&model).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("text.onnx", b"This is not a model.\n");
    write("empty.onnx", b"");
    write("half.onnx", &bytes[..bytes.len() / 2]);
    for name in ["text.onnx", "empty.onnx", "half.onnx"] {
        let text = refusal(folder.path(), &[name, "-o", "out.onnx"]);
        assert!(
            text.starts_with(&format!("error: {name}: is not an ONNX model")),
            "{text}"
        );
    }
    let text = refusal(folder.path(), &["missing.onnx", "-o", "out.onnx"]);
    assert!(text.starts_with("error: missing.onnx: cannot open"), "{text}");
    let text = refusal(folder.path(), &[".", "-o", "out.onnx"]);
    assert!(text.contains("is a folder"), "{text}");
}

#[test]
fn weights_that_are_missing_or_cut_short_are_named() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let data = folder.path().join("affine.data");
    std::fs::write(&data, [0; 20]).unwrap();
    let text = refusal(folder.path(), &DERIVE);
    assert!(
        text.contains("affine.data: is 20 bytes long, too short for tensor `weight`"),
        "{text}"
    );
    std::fs::remove_file(&data).unwrap();
    let text = refusal(folder.path(), &DERIVE);
    assert!(
        text.contains("affine.data: external data of tensor `weight` is missing"),
        "{text}"
    );
}

#[test]
fn open_and_wrong_dimensions_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let refused = |dims: &[&str]| refusal(folder.path(), &[&DERIVE[..3], dims].concat());
    let text = refused(&[]);
    assert!(
        text.contains("input `x`: dimension 0 (`batch`) is not fixed. Give it with --dim batch=N."),
        "{text}"
    );
    let text = refused(&["--dim", "bach=2"]);
    assert!(
        text.contains("has no dimension named `bach`. It has: batch."),
        "{text}"
    );
    let text = refused(&["--shape", "x=2,4"]);
    assert!(text.contains("dimension 1 is 3, but --shape gives 4"), "{text}");
    let text = refused(&["--dim", "batch=2", "--dim", "batch=3"]);
    assert!(text.contains("is given twice"), "{text}");
    let text = refused(&["--dim", "batch=4000000000000000000"]);
    assert!(text.contains("impossibly large"), "{text}");
}

#[test]
fn unknown_tensors_and_tensors_without_gradient_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let text = refusal(folder.path(), &[&DERIVE[..], &["--wrt", "wieght"]].concat());
    assert!(
        text.contains("--wrt wieght: is no initializer, constant or input of the model"),
        "{text}"
    );
    assert!(text.contains("The nearest names are `weight`"), "{text}");
    let text = refusal(folder.path(), &[&DERIVE[..], &["--wrt", "y"]].concat());
    assert!(text.contains("--wrt y: is no initializer"), "{text}");
}

/// The model with its addition exchanged for another operator, whose name must be as long.
fn with_operator(folder: &Path, op: &[u8; 3]) {
    let model = affine(folder);
    let mut bytes = std::fs::read(&model).unwrap();
    let at = bytes.windows(3).rposition(|w| w == b"Add").unwrap();
    bytes[at..at + 3].copy_from_slice(op);
    std::fs::write(model, bytes).unwrap();
}

#[test]
fn an_operator_without_a_rule_is_named() {
    let folder = tempfile::tempdir().unwrap();
    with_operator(folder.path(), b"Mod");
    let text = refusal(folder.path(), &DERIVE);
    assert!(
        text.contains("Mod node") && text.contains("(opset 17): operator Mod has no gradient rule"),
        "{text}"
    );
    with_operator(folder.path(), b"Foo");
    let text = refusal(folder.path(), &DERIVE);
    assert!(text.contains("operator Foo has no shape rule"), "{text}");
}

#[test]
fn folders_that_cannot_be_written_to_are_named() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let to = |output: &str| refusal(folder.path(), &["affine.onnx", "-o", output, "--dim", "batch=2"]);
    let text = to("nowhere/out.onnx");
    assert!(
        text.starts_with("error: nowhere: cannot open the folder"),
        "{text}"
    );
    let text = to("affine.onnx");
    assert!(text.contains("is the model to derive from"), "{text}");
    let text = to("affine.data");
    assert!(text.contains("affine.data: is in the way"), "{text}");
    // A file cannot hold files, whoever asks; a user with all rights may write into any folder.
    let text = to("affine.data/out.onnx");
    assert!(
        text.contains("affine.data: cannot open the folder") || text.contains("cannot write"),
        "{text}"
    );
    if let Some(locked) = locked_folder(folder.path()) {
        let text = to("locked/out.onnx");
        assert!(
            text.contains("Check the permissions, or choose another folder."),
            "{text}"
        );
        unlock(&locked);
    }
}

/// A folder without write permission, or `None` where permissions do not bind this user.
#[cfg(unix)]
fn locked_folder(folder: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let locked = folder.join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    let binds = std::fs::write(locked.join("probe"), "").is_err();
    if !binds {
        std::fs::remove_dir_all(&locked).unwrap();
    }
    binds.then_some(locked)
}

#[cfg(unix)]
fn unlock(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(not(unix))]
fn locked_folder(_: &Path) -> Option<PathBuf> {
    None
}

#[cfg(not(unix))]
fn unlock(_: &Path) {}

#[test]
fn a_model_is_shown_with_every_shape() {
    let folder = tempfile::tempdir().unwrap();
    affine(folder.path());
    let output = common::ortdpo(folder.path())
        .args(["show", "affine.onnx", "--dim", "batch=5"])
        .output()
        .unwrap();
    let text = common::stdout(&output);
    assert!(
        text.contains("input   x: f32[5, 3]\n") && text.contains("y: f32[5, 2] = Add(h, bias)"),
        "{text}"
    );
    assert!(
        text.contains("weight  weight: f32[3, 2]   # ") && text.ends_with("output  y\n"),
        "{text}"
    );
}
