use super::*;

fn candidate(prompt: usize, image: usize, scores: &[f64]) -> Candidate {
    Candidate {
        name: format!("{prompt}-{image}"),
        file: PathBuf::new(),
        prompt: format!("prompt {prompt}"),
        model: String::new(),
        scores: scores.to_vec(),
    }
}

fn plan() -> PairPlan {
    PairPlan {
        voters: 1,
        choose: Choose::BestWorst,
        label: Label::Score,
        min_margin: 0.0,
        keep_ties: false,
        held_out: 0.0,
        seed: 3,
    }
}

/// Preferred and other picture of every pair, by name.
fn decided(candidates: &[Candidate], selection: &Selection) -> Vec<(String, String)> {
    let names = |pair: &PreferencePair| {
        let [first, second] = pair.images.map(|image| candidates[image].name.clone());
        if pair.label == 1.0 {
            (first, second)
        } else {
            (second, first)
        }
    };
    let mut found: Vec<_> = selection.pairs.iter().map(names).collect();
    found.sort();
    found
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .collect()
}

#[test]
fn the_best_meets_the_worst_of_its_prompt() {
    let candidates = [
        candidate(0, 0, &[0.3]),
        candidate(1, 0, &[5.0]),
        candidate(0, 1, &[0.9]),
        candidate(0, 2, &[-0.4]),
        candidate(2, 0, &[1.0]),
        candidate(1, 1, &[6.0]),
    ];
    let selection = select(&candidates, &plan());
    assert_eq!(
        decided(&candidates, &selection),
        named(&[("0-1", "0-2"), ("1-1", "1-0")])
    );
    assert_eq!((selection.prompts, selection.lonely), (2, 1));
    let wide = PairPlan {
        min_margin: 1.2,
        ..plan()
    };
    let selection = select(&candidates, &wide);
    assert_eq!(
        (decided(&candidates, &selection), selection.close),
        (named(&[("0-1", "0-2")]), 1)
    );
}

#[test]
fn every_two_meet_and_ties_are_left_out_or_kept() {
    let candidates = [
        candidate(0, 0, &[1.0]),
        candidate(0, 1, &[1.0]),
        candidate(0, 2, &[2.0]),
    ];
    let all = PairPlan {
        choose: Choose::All,
        ..plan()
    };
    let selection = select(&candidates, &all);
    assert_eq!(
        decided(&candidates, &selection),
        named(&[("0-2", "0-0"), ("0-2", "0-1")])
    );
    assert_eq!(selection.ties, 1);
    let kept = select(
        &candidates,
        &PairPlan {
            keep_ties: true,
            ..all
        },
    );
    let labels: Vec<f64> = kept.pairs.iter().map(|pair| pair.label).collect();
    assert_eq!(labels.iter().filter(|&&label| label == 0.5).count(), 1);
    assert_eq!(labels.len(), 3);
    // Equal scores of all pictures are one tie of two different pictures.
    let equal = [candidate(0, 0, &[1.0]), candidate(0, 1, &[1.0])];
    let tie = select(
        &equal,
        &PairPlan {
            keep_ties: true,
            ..plan()
        },
    );
    assert_ne!(tie.pairs[0].images[0], tie.pairs[0].images[1]);
}

#[test]
fn neighbours_in_the_order_of_scores_meet() {
    let scores = [0.3, 0.9, -0.4, 0.5];
    let candidates: Vec<Candidate> = (0..4)
        .map(|image| candidate(0, image, &[scores[image]]))
        .collect();
    let adjacent = PairPlan {
        choose: Choose::Adjacent,
        ..plan()
    };
    assert_eq!(
        decided(&candidates, &select(&candidates, &adjacent)),
        named(&[("0-0", "0-2"), ("0-1", "0-3"), ("0-3", "0-0")])
    );
}

#[test]
fn a_majority_does_not_care_for_scales() {
    // The third score is far more certain than the first two, and is outvoted.
    let candidates = [
        candidate(0, 0, &[0.1, 0.1, -900.0]),
        candidate(0, 1, &[0.0, 0.0, 900.0]),
    ];
    let majority = PairPlan {
        voters: 3,
        label: Label::Majority,
        ..plan()
    };
    assert_eq!(
        decided(&candidates, &select(&candidates, &majority)),
        named(&[("0-0", "0-1")])
    );
    let two = PairPlan {
        voters: 2,
        ..majority
    };
    let split = [candidate(0, 0, &[1.0, 0.0]), candidate(0, 1, &[0.0, 1.0])];
    assert_eq!(select(&split, &two).ties, 1);
    // Scores behind the voters only watch.
    let one = PairPlan {
        voters: 1,
        ..majority
    };
    assert_eq!(decided(&split, &select(&split, &one)), named(&[("0-0", "0-1")]));
}

#[test]
fn bradley_terry_labels_have_the_frequency_of_the_model() {
    // 4,000 prompts with a difference of 1 each: σ is 1, so the better one wins with probability 1 / (1 + exp(-1 / T)).
    let candidates: Vec<Candidate> = (0..4000)
        .flat_map(|prompt| [candidate(prompt, 0, &[0.0]), candidate(prompt, 1, &[1.0])])
        .collect();
    for (temperature, expected) in [(0.5, 0.8808), (1.0, 0.7311), (0.0, 1.0)] {
        let plan = PairPlan {
            label: Label::BradleyTerry { temperature },
            ..plan()
        };
        let selection = select(&candidates, &plan);
        let rate = agreement(&candidates, &selection.pairs, 0).train.rate().unwrap();
        // Three and a half standard errors.
        assert!((rate - expected).abs() < 0.025, "{temperature}: {rate}");
        assert_eq!(selection, select(&candidates, &plan));
        assert_ne!(selection, select(&candidates, &PairPlan { seed: 4, ..plan }));
    }
    let half = PairPlan {
        held_out: 0.5,
        label: Label::BradleyTerry { temperature: 1.0 },
        ..plan()
    };
    let found = agreement(&candidates, &select(&candidates, &half).pairs, 0);
    assert_eq!(
        found.held_out.rate(),
        Some(1.0),
        "held-out labels are the plain order"
    );
    assert!((1800..2200).contains(&found.held_out.n()), "{found:?}");
}

#[test]
fn the_order_of_a_pairs_images_says_nothing() {
    let candidates: Vec<Candidate> = (0..1000)
        .flat_map(|prompt| [candidate(prompt, 0, &[0.0]), candidate(prompt, 1, &[1.0])])
        .collect();
    let first = select(&candidates, &plan())
        .pairs
        .iter()
        .filter(|pair| pair.label == 1.0)
        .count();
    assert!((430..570).contains(&first), "{first}");
}

#[test]
fn a_prompt_is_held_out_whatever_else_is_there() {
    let candidates: Vec<Candidate> = (0..60)
        .flat_map(|prompt| (0..3).map(move |image| candidate(prompt, image, &[(prompt * image) as f64])))
        .collect();
    let half = PairPlan {
        held_out: 0.5,
        choose: Choose::All,
        keep_ties: true,
        ..plan()
    };
    let held_out = |candidates: &[Candidate]| {
        let mut prompts: Vec<String> = (select(candidates, &half).pairs.iter())
            .filter(|pair| pair.held_out)
            .map(|pair| candidates[pair.images[0]].prompt.clone())
            .collect();
        prompts.dedup();
        prompts
    };
    let whole = held_out(&candidates);
    let part = held_out(&candidates[30..]);
    assert!(whole.len() > 15 && part.iter().all(|prompt| whole.contains(prompt)));
}

/// Twenty prompts in two spellings, each with pictures of its own: whichever part a prompt is in, both spellings are there, and
/// `ortdpo data split` puts them into the same one.
#[test]
fn spellings_of_a_prompt_are_held_out_together() {
    let spelled = |n: usize, image: usize, prompt: String| Candidate {
        prompt,
        ..candidate(n, image, &[image as f64])
    };
    let candidates: Vec<Candidate> = (0..20)
        .flat_map(|n| {
            [0, 1].into_iter().flat_map(move |image| {
                [
                    spelled(n, image, format!("a red cat {n}")),
                    spelled(n, image, format!("A  Red Cat {n}")),
                ]
            })
        })
        .collect();
    let plan = PairPlan {
        held_out: 0.5,
        ..plan()
    };
    let selection = select(&candidates, &plan);
    assert_eq!(selection.pairs.len(), 40, "spellings do not meet");
    let hold_out = HoldOut {
        share: 0.5,
        seed: plan.seed,
    };
    for pair in &selection.pairs {
        let prompt = &candidates[pair.images[0]].prompt;
        assert_eq!(pair.held_out, hold_out.holds_out(&normalised(prompt)), "{prompt}");
    }
    let held_out = selection.pairs.iter().filter(|pair| pair.held_out).count();
    assert!((4..36).contains(&held_out), "{held_out}");
}
