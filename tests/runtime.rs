//! Sessions on ONNX Runtime: runs by name, what is refused, memory shared between sessions.

mod common;

use std::path::{Path, PathBuf};

use half::f16;
use ndarray::{arr1, arr2};
use ortdpo::Error;
use ortdpo::runtime::{
    Binding, ExecutionProvider, OptLevel, PackedWeights, Session, SessionOptions, SharedWeights, WeightSource,
};
use ortdpo::tensor::{DType, Tensor};

fn fixture(name: &str) -> PathBuf {
    common::fixtures().join("runtime").join(name)
}

fn affine() -> Session {
    Session::from_file(&fixture("affine.onnx"), &SessionOptions::default()).unwrap()
}

/// `x · [[1, 2], [3, 4], [5, 6]] + [10, 20]`, by hand.
fn affine_of(x: [f32; 3]) -> [f32; 2] {
    [
        x[0] + 3. * x[1] + 5. * x[2] + 10.,
        2. * x[0] + 4. * x[1] + 6. * x[2] + 20.,
    ]
}

fn message(result: ortdpo::Result<impl Sized>) -> String {
    let error = result.err().expect("this must be refused");
    assert!(
        matches!(error, Error::BadInput { .. } | Error::Io { .. }),
        "{error:?}"
    );
    error.to_string()
}

#[test]
fn runs_a_model_with_external_data_for_any_batch() {
    let mut session = affine();
    assert_eq!(session.inputs()[0].to_string(), "x f32[batch,3]");
    for x in [vec![[1., 0., -1.]], vec![[1., 2., 3.], [0., 0., 0.]]] {
        let input = Tensor::f32(&[x.len(), 3], x.concat());
        let y = session.run(&[("x", &input)]).unwrap().take("y").unwrap();
        let expected = x.iter().flat_map(|row| affine_of(*row)).collect();
        assert_eq!(y, Tensor::f32(&[x.len(), 2], expected));
    }
}

#[test]
fn reads_views_that_are_not_row_major() {
    let columns = arr2(&[[1f32, 4.], [2., 5.], [3., 6.]]);
    let y = affine().run(&[("x", columns.t())]).unwrap().take("y").unwrap();
    assert_eq!(
        y,
        Tensor::f32(
            &[2, 2],
            [affine_of([1., 2., 3.]), affine_of([4., 5., 6.])].concat()
        )
    );
}

#[test]
fn halves_integers_and_bools_go_in_and_out() {
    let mut session = Session::from_file(&fixture("half.onnx"), &SessionOptions::default()).unwrap();
    let x = arr2(&[[1f32, -2.], [0.5, 0.]]).mapv(f16::from_f32);
    let mut outputs = session.run(&[("x", &x)]).unwrap();
    assert_eq!(outputs.names().collect::<Vec<_>>(), ["y", "n", "b"]);
    assert_eq!(outputs.take("y").unwrap(), Tensor::F16((&x + &x).into_dyn()));
    assert_eq!(outputs.take("n").unwrap(), Tensor::I64(arr1(&[2, 2]).into_dyn()));
    assert_eq!(
        outputs.take("b").unwrap(),
        Tensor::Bool(arr2(&[[true, false], [true, false]]).into_dyn())
    );
    assert!(message(outputs.take("y")).contains("output `y`: does not exist"));
}

#[test]
fn an_input_that_does_not_fit_is_named_with_what_is_wrong() {
    let mut session = affine();
    let (good, narrow) = (
        Tensor::f32(&[1, 3], vec![0.; 3]),
        Tensor::f32(&[1, 2], vec![0.; 2]),
    );
    let text = message(session.run::<&Tensor>(&[]));
    assert!(text.contains("affine.onnx: input `x`: was not given"), "{text}");
    let text = message(session.run(&[("x", &narrow)]));
    assert!(
        text.contains("takes x f32[batch,3], but was given f32[1, 2]"),
        "{text}"
    );
    let text = message(session.run(&[("x", &Tensor::i64(&[1, 3], vec![0; 3]))]));
    assert!(text.contains("but was given i64[1, 3]"), "{text}");
    let text = message(session.run(&[("x", &good), ("z", &good)]));
    assert!(text.contains("input `z`: is not an input; there are x"), "{text}");
    let text = message(session.run(&[("x", &good), ("x", &good)]));
    assert!(text.contains("was given twice"), "{text}");
}

#[test]
fn a_symbolic_dimension_can_be_fixed() {
    let options = SessionOptions {
        dims: vec![("batch".into(), 4)],
        ..Default::default()
    };
    let session = Session::from_file(&fixture("affine.onnx"), &options).unwrap();
    assert_eq!(session.inputs()[0].static_shape(), Some(vec![4, 3]));
}

#[test]
fn a_file_that_is_no_model_is_refused_wherever_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.onnx");
    let whole = std::fs::read(fixture("affine.onnx")).unwrap();
    std::fs::copy(fixture("affine.data"), folder.path().join("affine.data")).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = message(Session::from_file(&path, &SessionOptions::default()));
        assert!(
            text.starts_with(&path.display().to_string()),
            "cut at {length}: {text}"
        );
    }
    std::fs::write(&path, "plain text").unwrap();
    assert!(message(Session::from_file(&path, &SessionOptions::default())).contains("is not an ONNX model"));
    let absent = folder.path().join("absent.onnx");
    assert!(message(Session::from_file(&absent, &SessionOptions::default())).contains("cannot read"));
    assert!(message(Session::from_file(folder.path(), &SessionOptions::default())).contains("is a folder"));
}

#[test]
fn external_data_missing_or_too_short_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("affine.onnx");
    std::fs::copy(fixture("affine.onnx"), &path).unwrap();
    for optimization in [OptLevel::None, OptLevel::All] {
        let options = SessionOptions {
            optimization,
            ..Default::default()
        };
        let data = folder.path().join("affine.data");
        let text = message(Session::from_file(&path, &options));
        let missing = format!("values of `weight` is missing: {}", data.display());
        assert!(text.contains(&missing), "{text}");
        std::fs::write(&data, [0; 20]).unwrap();
        let text = message(Session::from_file(&path, &options));
        assert!(text.contains("values of `weight` is too short"), "{text}");
        assert!(text.contains("size to read: 24 given file_length: 20"), "{text}");
        std::fs::remove_file(&data).unwrap();
    }
}

#[test]
fn a_provider_that_was_asked_for_is_never_replaced_by_the_cpu() {
    let ep = common::foreign_provider();
    let options = SessionOptions {
        ep,
        ..Default::default()
    };
    let text = message(Session::from_file(&fixture("affine.onnx"), &options));
    assert!(
        text.contains(&format!("execution provider `{ep}`: cannot be used")),
        "{text}"
    );
    assert_ne!(ep, ExecutionProvider::Cpu);
}

#[test]
fn profiling_writes_the_time_of_every_operator() {
    let folder = tempfile::tempdir().unwrap();
    let options = SessionOptions {
        profile: Some(folder.path().join("step")),
        ..Default::default()
    };
    let mut session = Session::from_file(&fixture("affine.onnx"), &options).unwrap();
    session.run(&[("x", &Tensor::f32(&[1, 3], vec![0.; 3]))]).unwrap();
    let path = session.end_profiling().unwrap();
    assert!(path.starts_with(folder.path()));
    assert!(std::fs::read_to_string(path).unwrap().contains("MatMul"));
}

#[test]
fn a_binding_keeps_inputs_and_writes_outputs_in_place() {
    let mut session = Session::from_file(&fixture("half.onnx"), &SessionOptions::default()).unwrap();
    let mut binding = Binding::new(&session).unwrap();
    assert!(message(binding.run(&mut session, &[])).contains("input `x`: was not given"));
    let ones = arr2(&[[1f32, 1.], [1., 1.]]).mapv(f16::from_f32);
    binding.keep("x", Tensor::F16(ones.clone().into_dyn())).unwrap();
    let address = |binding: &Binding| match binding.output("y").unwrap() {
        ortdpo::runtime::TensorView::F16(y) => (y.as_ptr(), y.to_owned()),
        other => panic!("{other:?}"),
    };
    binding.run(&mut session, &[]).unwrap();
    let (first, y) = address(&binding);
    assert_eq!(y, (&ones + &ones).into_dyn());
    let twos = &ones + &ones;
    binding.run(&mut session, &[("x", (&twos).into())]).unwrap();
    let (second, y) = address(&binding);
    assert_eq!((second, y), (first, (&twos + &twos).into_dyn()));
}

#[test]
fn a_kept_input_changes_in_place_between_runs() {
    let mut session = affine();
    let mut binding = Binding::new(&session).unwrap();
    binding.keep("x", Tensor::f32(&[1, 3], vec![0.; 3])).unwrap();
    for value in [0., 1., 2.] {
        binding.kept_mut("x").unwrap().fill(value);
        binding.run(&mut session, &[]).unwrap();
        let expected = Tensor::f32(&[1, 2], affine_of([value; 3]).to_vec());
        assert_eq!(binding.output("y").unwrap().to_tensor(), expected);
    }
    assert!(message(binding.kept_mut("z")).contains("is not kept"));
    binding.keep("x", Tensor::f32(&[3], vec![0.; 3])).unwrap();
    assert!(message(binding.run(&mut session, &[])).contains("but was given f32[3]"));
}

fn source(name: &str, dims: &[usize], file: &Path) -> WeightSource {
    WeightSource {
        name: name.into(),
        dtype: DType::F32,
        dims: dims.into(),
        file: file.into(),
        offset: 0,
    }
}

#[test]
fn shared_weights_are_read_from_their_own_mapping() {
    let model = std::fs::read(fixture("affine.onnx")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Not the values of affine.data, so that the result tells where they came from.
    let zeros = folder.path().join("zeros");
    std::fs::write(&zeros, [0; 24]).unwrap();
    let weights = SharedWeights::map([source("weight", &[3, 2], &zeros)]).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["weight"]);
    assert_eq!(weights.subset(|name| name != "weight").names().count(), 0);
    let beside = common::fixtures().join("runtime");
    let x = arr2(&[[1f32, 2., 3.]]);
    for packed in [None, Some(PackedWeights::new().unwrap())] {
        let options = SessionOptions {
            optimization: OptLevel::None,
            packed,
            ..Default::default()
        };
        let mut session = Session::with_weights(&model, Some(&beside), &weights, &options).unwrap();
        let y = session.run(&[("x", &x)]).unwrap().take("y").unwrap();
        assert_eq!(y, Tensor::f32(&[1, 2], vec![10., 20.]));
    }
}

#[test]
fn a_weight_that_is_not_aligned_in_its_file_is_read_all_the_same() {
    let model = std::fs::read(fixture("affine.onnx")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shifted");
    let whole = [vec![0xff], std::fs::read(fixture("affine.data")).unwrap()].concat();
    std::fs::write(&file, whole).unwrap();
    let shifted = WeightSource {
        offset: 1,
        ..source("weight", &[3, 2], &file)
    };
    let weights = SharedWeights::map([shifted]).unwrap();
    let beside = common::fixtures().join("runtime");
    let mut session =
        Session::with_weights(&model, Some(&beside), &weights, &SessionOptions::default()).unwrap();
    let y = session
        .run(&[("x", &arr2(&[[1f32, 2., 3.]]))])
        .unwrap()
        .take("y")
        .unwrap();
    assert_eq!(y, Tensor::f32(&[1, 2], affine_of([1., 2., 3.]).to_vec()));
}

#[test]
fn sessions_and_bindings_can_move_to_another_thread() {
    let mut session = affine();
    let mut binding = Binding::new(&session).unwrap();
    let y = std::thread::spawn(move || {
        let x = arr2(&[[0f32, 0., 0.]]);
        binding.run(&mut session, &[("x", (&x).into())]).unwrap();
        binding.output("y").unwrap().to_tensor()
    });
    assert_eq!(y.join().unwrap(), Tensor::f32(&[1, 2], vec![10., 20.]));
}

#[test]
fn a_weight_beyond_the_end_of_its_file_is_refused() {
    let text = message(SharedWeights::map([source(
        "weight",
        &[4, 2],
        &fixture("affine.data"),
    )]));
    assert!(
        text.contains("affine.data: is too short: weight `weight` needs 32 bytes from 0"),
        "{text}"
    );
}
