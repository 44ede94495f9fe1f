//! What bad input is told, before anything runs.

use std::fs;

use crate::common::train::paragraph;
use crate::workspace::{METHODS, STRATEGIES, Workspace};

#[test]
fn mistakes_are_told_before_anything_runs() {
    let with = |methods: &str, strategies: &str, rest: &str| format!("{methods}{strategies}{rest}");
    let workspace = Workspace::new("");
    for (config, expected) in [
        (
            with(
                "methods:\n  - name: dpo\n    set:\n      objective: {kidn: dpo}\n",
                STRATEGIES,
                "",
            ),
            "ablation.yaml:4: methods[0].set.objective.kidn: is not a known key (in dpo + plain). Did you mean kind?",
        ),
        (
            with("method: []\n", STRATEGIES, ""),
            "ablation.yaml:1: method: is not a known key. Did you mean methods?",
        ),
        (
            with("methods:\n  - {name: a}\n  - {name: a}\n", STRATEGIES, ""),
            "ablation.yaml:3: methods[1].name: is a again",
        ),
        (
            with(METHODS, "strategies: [{name: a/b}]\n", ""),
            "ablation.yaml:2: strategies[0].name: is \"a/b\", which cannot be the name of a folder",
        ),
        (
            with(
                "methods: [{name: mapo, set: {objective: {kind: mapo}}}]\n",
                STRATEGIES,
                "",
            ),
            "ablation.yaml:4: strategies[1].set.reference.update: moves a reference, but objective mapo has no \
             reference (in mapo + ema)",
        ),
        (
            with(
                METHODS,
                "strategies:\n  - name: a\n  - name: b\n    set: {reference: {alpha: 0.1}}\n  - name: c\n    set: {seed: 1}\n",
                "",
            ),
            "ablation.yaml:7: strategies[2].set.seed: is set. Leave it out",
        ),
        (
            with(
                METHODS,
                "strategies:\n  - name: a\n  - name: b\n    set: {}\n",
                "",
            ),
            "ablation.yaml:5: strategies[1].set: makes dpo + b the same training as dpo + a",
        ),
        (
            with(METHODS, STRATEGIES, "runs:\n  - {strategies: [plian]}\n"),
            "ablation.yaml:6: runs[0].strategies[0]: is plian, which is not there. Did you mean plain?",
        ),
        (
            with(
                METHODS,
                STRATEGIES,
                "runs: [{seeds: [1]}, {methods: [dpo], seeds: [2, 1]}]\n",
            ),
            "runs[1]: names dpo under plain with seed 1 again",
        ),
        (
            with(METHODS, STRATEGIES, "seeds: [1, 2, 1]\n"),
            "ablation.yaml:5: seeds: names 1 twice",
        ),
        (
            with(METHODS, STRATEGIES, "ours: em\n"),
            "ours: is em, which is not there. Did you mean ema?",
        ),
        (
            with(
                "methods: [{name: dpo, tune: {optimizer.lr: [1, 2]}}]\n",
                STRATEGIES,
                "",
            ),
            "methods: have values to choose among (`tune`). Say with `tuning`",
        ),
        (
            with(
                "methods: [{name: dpo, tune: {optimizer.rl: [1, 2]}}]\n",
                STRATEGIES,
                "",
            ),
            "ablation.yaml:1: methods[0].tune.optimizer.rl: is not a known key",
        ),
        (
            with(
                "methods: [{name: dpo, tune: {optimizer.lr: [1, 2]}}]\n",
                STRATEGIES,
                "tuning: {prompts: [prompts.txt]}\n",
            ),
            "tuning.prompts: holds \"a cat\", which is a prompt of the final table",
        ),
        (
            with(METHODS, STRATEGIES, "tuning: {prompts: [prompts.txt]}\n"),
            "tuning: has nothing to choose",
        ),
    ] {
        workspace.configure(&config);
        let text = paragraph(&workspace.run(&[]), 2);
        assert!(text.contains(expected), "{expected}\n{text}");
        assert!(!workspace.path("out").exists());
    }
    for (old, new, expected) in [
        (
            "sampling: {steps: 2",
            "sampling: {steps: 0",
            "evaluation.sampling.steps: is 0",
        ),
        (
            "evaluation:\n",
            "evaluation:\n  baseline: base\n",
            "evaluation.baseline: is set",
        ),
        ("[prompts.txt]", "[nowhere.txt]", "nowhere.txt: cannot read"),
        (
            "  model: ",
            "  modell: ",
            "ablation.yaml:6: base.modell: is not a known key",
        ),
    ] {
        workspace.configure(&format!("{METHODS}{STRATEGIES}"));
        let text = fs::read_to_string(workspace.path("ablation.yaml")).unwrap();
        assert!(text.contains(old), "{old}");
        workspace.write("ablation.yaml", &text.replacen(old, new, 1));
        let text = paragraph(&workspace.run(&[]), 2);
        assert!(text.contains(expected), "{expected}\n{text}");
        assert!(!workspace.path("out").exists());
    }
}
