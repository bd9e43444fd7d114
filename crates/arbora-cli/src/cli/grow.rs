//! `arbora grow`

use super::GrowArgs;
use crate::alone::alone;
use crate::families::retrieval::RetrievalModel;
use crate::families::retrieval::data::Source;
use crate::families::retrieval::{RetrievalConfig, RetrievalModelKind, RetrievalTask};
use crate::grow::{Choice, Cost, Settings, View, bandit, optimisation, refusal};
use crate::message::tell;
use crate::picture::curves::{self, Panel, Series};
use crate::run::{TrainedRun, config_of, refuse_others};
use crate::statistic::Statistic;
use crate::table::table;
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::is_folder;
use burn::tensor::Device;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Rounds at the end of a bandit loop that are also looked at by themselves: what was learned.
const LAST: usize = 100;
/// Points of a curve, at most.
const POINTS: usize = 100;

/// Which loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Loop {
    /// Pull arms of the wheel bandit.
    Bandit,
    /// Look for the maximum of functions drawn from Gaussian processes.
    Optimisation,
}

impl Loop {
    fn of(task: RetrievalTask) -> Option<Self> {
        match task {
            RetrievalTask::Bandit => Some(Self::Bandit),
            RetrievalTask::Gp => Some(Self::Optimisation),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bandit => "bandit",
            Self::Optimisation => "optimisation",
        }
    }
}

/// A model of the run and what it attends to.
struct Player {
    view: View,
    cost: Cost,
}

pub fn run(args: GrowArgs) -> Result<ExitCode> {
    refuse_others("grow", &args.run)?;
    let kind = fitting(args.kind, config_of::<RetrievalConfig>(&args.run)?.task)?;
    let out = args.out.as_deref().unwrap_or(&args.run);
    is_folder(out)?;
    let TrainedRun::<RetrievalConfig> {
        config,
        data,
        model,
        step,
        backend,
        device,
        ..
    } = TrainedRun::load(&args.run, args.backend.as_deref(), &[])?;
    let most_tokens = data.features.most_tokens;

    let (rounds, repeats) = match kind {
        Loop::Bandit => (500, 10),
        Loop::Optimisation => (40, 50),
    };
    let settings = Settings {
        rounds: args.rounds.map_or(rounds, |rounds| rounds as usize),
        repeats: args.repeats.map_or(repeats, |repeats| repeats as usize),
        random_rounds: match &config.data {
            Source::Bandit(bandit) => bandit.min_context,
            Source::Gp(gp) => gp.min_context,
            _ => unreachable!("a loop that fits the task"),
        },
        choice: args.choice,
        seed: args.seed,
    };
    if settings.rounds > most_tokens {
        tell!(
            "contexts grow to {} tokens; the run was trained with at most {}",
            settings.rounds,
            most_tokens
        );
    }
    let views: &[View] = match config.model {
        RetrievalModelKind::ReTreever | RetrievalModelKind::OracleRoute => {
            &[View::Learned, View::Random, View::AllLeaves]
        }
        RetrievalModelKind::RandomRoute => &[View::Random, View::AllLeaves],
        RetrievalModelKind::CrossAttention | RetrievalModelKind::Perceiver => &[View::Whole],
    };
    let results = match &config.data {
        Source::Gp(gp) => {
            let objectives = optimisation::objectives(gp.kernel, &settings);
            let played = play(views, &settings, |view, tick| {
                optimisation::run(&model, view, &objectives, &settings, &device, tick)
            })?;
            let random = optimisation::random_search(&objectives, &settings);
            Results::Optimisation { played, random }
        }
        _ => {
            let played = play(views, &settings, |view, tick| {
                bandit::run(&model, view, &settings, &device, tick)
            })?;
            Results::Bandit { played }
        }
    };
    let anew = encoded_anew(&model, &device);
    draw(&results, &settings, kind, out)?;
    let text = if args.json {
        let mut value = results.json(&settings);
        value["run"] = args.run.to_string_lossy().into();
        value["model"] = json!(config.model);
        value["step"] = step.into();
        value["backend"] = backend.into();
        value["loop"] = json!(kind);
        value["streamed"] = anew.is_none().into();
        value["encoded_anew_because"] = json!(anew);
        value.to_string()
    } else {
        let how = match &anew {
            None => "each round appends to the trees".to_owned(),
            Some(reason) => format!("each round encodes the whole context anew: {reason}"),
        };
        format!(
            "{} at step {step}, {}, {} rounds, {} repeats, {}\n{how}\n\n{}\n\ncurves: {}",
            config.model.name(),
            kind.name(),
            settings.rounds,
            settings.repeats,
            match settings.choice {
                Choice::Thompson => "Thompson sampling",
                Choice::Ucb => "upper confidence bounds",
            },
            results.text(&settings),
            out.join(stem(kind) + ".svg").display()
        )
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The loop asked for, if it fits the run.
fn fitting(asked: Option<Loop>, task: RetrievalTask) -> Result<Loop> {
    let name = task.name();
    match (Loop::of(task), asked) {
        (Some(fits), None) => Ok(fits),
        (Some(fits), Some(asked)) if fits == asked => Ok(fits),
        (_, Some(Loop::Bandit)) => {
            bail!("--loop bandit needs a run of the task bandit, this one is of {name}")
        }
        (_, Some(Loop::Optimisation)) => {
            bail!("--loop optimisation needs a run of the task gp, this one is of {name}")
        }
        (None, None) => bail!("loops need a run of the task bandit or gp, this one is of {name}"),
    }
}

/// Why every round encodes the whole context, if it does.
fn encoded_anew(model: &RetrievalModel, device: &Device) -> Option<String> {
    match model.retreever() {
        Some(_) => refusal(model, device).map(|refused| refused.to_string()),
        None => Some("this model has no tree to append to".into()),
    }
}

/// Runs a loop by each view with a progress bar, hidden where standard error is no terminal.
fn play<T>(
    views: &[View],
    settings: &Settings,
    run: impl Fn(View, &mut dyn FnMut()) -> Result<(T, Cost)>,
) -> Result<Vec<(Player, T)>> {
    let play = |&view: &View| {
        let bar = ProgressBar::new(settings.rounds as u64);
        let template = "{prefix:>16} {bar:24} {pos}/{len} [{elapsed}<{eta}]";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        bar.set_prefix(view.name());
        let played = run(view, &mut || bar.inc(1));
        bar.finish();
        let (regrets, cost) = played?;
        Ok((Player { view, cost }, regrets))
    };
    views.iter().map(play).collect()
}

/// What the players of a loop achieved.
enum Results {
    Bandit {
        played: Vec<(Player, Vec<bandit::Regrets>)>,
    },
    Optimisation {
        played: Vec<(Player, optimisation::Regrets)>,
        random: optimisation::Regrets,
    },
}

/// Rounds after which simple regret is reported.
fn marks(rounds: usize) -> Vec<usize> {
    let mut marks: Vec<usize> = [5, 10, 20, 40, 80, 160, 320]
        .into_iter()
        .filter(|mark| *mark < rounds)
        .collect();
    marks.push(rounds);
    marks
}

/// The simple regrets of all functions after a number of rounds.
fn after(regrets: &optimisation::Regrets, rounds: usize) -> Vec<f64> {
    regrets.iter().map(|one| one[rounds - 1]).collect()
}

impl Results {
    fn players(&self) -> Vec<&Player> {
        match self {
            Self::Bandit { played } => played.iter().map(|(player, _)| player).collect(),
            Self::Optimisation { played, .. } => played.iter().map(|(player, _)| player).collect(),
        }
    }

    fn json(&self, settings: &Settings) -> Value {
        let rounds = settings.rounds;
        let number = |values: Vec<f64>| {
            let all = with_error(&values);
            json!({ "mean": all.mean, "standard_error": all.sd })
        };
        let cost = |player: &Player| {
            json!({
                "nodes_read": player.cost.nodes_read,
                "milliseconds_per_round": {
                    "middle": player.cost.milliseconds(0.5), "end": player.cost.milliseconds(1.0),
                },
            })
        };
        let methods: Vec<Value> = match self {
            Self::Bandit { played } => played
                .iter()
                .map(|(player, regrets)| {
                    let last = rounds.saturating_sub(LAST);
                    let regrets = regrets.iter().map(|regret| {
                        json!({
                            "delta": regret.delta,
                            "percent_of_uniform": number(regret.percent(0, rounds)),
                            "last_percent_of_uniform": number(regret.percent(last, rounds)),
                        })
                    });
                    let regrets: Vec<Value> = regrets.collect();
                    json!({ "view": player.view, "regret": regrets, "cost": cost(player) })
                })
                .collect(),
            Self::Optimisation { played, random } => {
                let regret = |regrets: &optimisation::Regrets| -> Vec<Value> {
                    let row = |round| {
                        let regret = number(after(regrets, round));
                        json!({ "round": round, "simple_regret": regret })
                    };
                    marks(rounds).into_iter().map(row).collect()
                };
                let played = played.iter().map(|(player, regrets)| {
                    let regret = regret(regrets);
                    json!({ "view": player.view, "regret": regret, "cost": cost(player) })
                });
                let search = json!({ "view": "random-search", "regret": regret(random) });
                played.chain([search]).collect()
            }
        };
        json!({
            "rounds": rounds, "repeats": settings.repeats, "random_rounds": settings.random_rounds,
            "choice": settings.choice, "seed": settings.seed, "methods": methods,
        })
    }

    fn text(&self, settings: &Settings) -> String {
        let rounds = settings.rounds;
        let mut names: Vec<&str> = self.players().iter().map(|one| one.view.name()).collect();
        let costs = costs(&self.players(), rounds);
        let over = |what: &str| match settings.repeats {
            1 => String::new(),
            _ => format!(", mean ± standard error over {what}"),
        };
        let quality = match self {
            Self::Bandit { played } => {
                let block = |from: usize| {
                    let rows = bandit::DELTAS.iter().enumerate().map(|(at, delta)| {
                        let cells = played.iter().map(|(_, regrets)| {
                            with_error(&regrets[at].percent(from, rounds)).text(2)
                        });
                        std::iter::once(delta.to_string()).chain(cells).collect()
                    });
                    named("delta", &names, rows)
                };
                let over = over("repeats");
                let mut text = format!("regret in % of uniform choice{over}\n{}", block(0));
                if rounds > LAST {
                    text += &format!("\n\nover the last {LAST} rounds\n{}", block(rounds - LAST));
                }
                text
            }
            Self::Optimisation { played, random } => {
                names.push("random search");
                let rows = marks(rounds).into_iter().map(|round| {
                    let all = played.iter().map(|(_, regrets)| regrets).chain([random]);
                    let cells = all.map(|regrets| with_error(&after(regrets, round)).text(4));
                    std::iter::once(round.to_string()).chain(cells).collect()
                });
                format!(
                    "simple regret after each round{}\n{}",
                    over("functions"),
                    named("round", &names, rows)
                )
            }
        };
        format!("{quality}\n\n{costs}")
    }
}

/// What rounds cost, for a person.
fn costs(players: &[&Player], rounds: usize) -> String {
    let names: Vec<&str> = players.iter().map(|player| player.view.name()).collect();
    let row = |text: &str, cell: &dyn Fn(&Player) -> String| {
        let cells = players.iter().map(|one| cell(one));
        std::iter::once(text.to_owned()).chain(cells).collect()
    };
    let time = |share: f64| move |one: &Player| format!("{:.2}", one.cost.milliseconds(share));
    let read = |one: &Player| match one.cost.nodes_read {
        Some(read) => format!("{read:.1}"),
        None => "-".into(),
    };
    let rows = [
        row(&format!("ms at {} tokens", rounds / 2), &time(0.5)),
        row(&format!("ms at {rounds} tokens"), &time(1.0)),
        row("nodes read", &read),
    ];
    let table = named("", &names, rows.into_iter());
    format!("cost of a round of all worlds, nodes read per query at the end\n{table}")
}

/// Mean and standard error.
fn with_error(values: &[f64]) -> Statistic {
    let all = Statistic::of(values.iter().copied()).expect("a loop has repeats");
    all.with_error(values.len())
}

/// A table with what is played above its columns.
fn named(corner: &str, names: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let names = names.iter().map(|name| (*name).to_owned());
    let head = std::iter::once(corner.to_owned()).chain(names).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    table(&rows, 1).trim_end().to_owned()
}

/// What its pictures are called, without the ending.
fn stem(kind: Loop) -> String {
    format!("grow-{}", kind.name())
}

/// Draws regret by round and time by length of context.
fn draw(results: &Results, settings: &Settings, kind: Loop, out: &Path) -> Result<()> {
    let rounds = settings.rounds;
    let shown: Vec<usize> = (1..=rounds).step_by(rounds.div_ceil(POINTS)).collect();
    let mut panels: Vec<Panel> = match results {
        Results::Bandit { played } => bandit::DELTAS
            .iter()
            .enumerate()
            .map(|(at, delta)| Panel {
                title: format!("Regret, core of radius {delta}"),
                x_label: "round".into(),
                y_label: "% of uniform choice so far".into(),
                series: played
                    .iter()
                    .map(|(player, regrets)| {
                        let measure = |round| regrets[at].percent(0, round);
                        series(player.view.name(), &shown, measure)
                    })
                    .collect(),
                ..Panel::default()
            })
            .collect(),
        Results::Optimisation { played, random } => {
            let named = played
                .iter()
                .map(|(player, regrets)| (player.view.name(), regrets))
                .chain([("random search", random)]);
            vec![Panel {
                title: "Simple regret".into(),
                x_label: "round".into(),
                y_label: "maximum - best seen".into(),
                series: named
                    .map(|(name, regrets)| series(name, &shown, |round| after(regrets, round)))
                    .collect(),
                ..Panel::default()
            }]
        }
    };
    panels.push(Panel {
        title: "Time of a round".into(),
        x_label: "tokens of context".into(),
        y_label: "ms, all worlds".into(),
        series: results
            .players()
            .iter()
            .map(|player| Series {
                name: player.view.name().into(),
                points: player.cost.by_tokens(settings.random_rounds),
                ..Series::default()
            })
            .collect(),
        ..Panel::default()
    });
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    alone(out, || curves::draw(&panels, &out.join(stem(kind))))
}

/// Means with a band of one standard error to either side.
fn series(name: &str, rounds: &[usize], measure: impl Fn(usize) -> Vec<f64>) -> Series {
    let numbers: Vec<(f64, f64, f64)> = rounds
        .iter()
        .map(|round| {
            let all = with_error(&measure(*round));
            (*round as f64, all.mean, all.sd.unwrap_or(f64::NAN))
        })
        .collect();
    let band = numbers
        .iter()
        .map(|(_, mean, error)| (mean - error, mean + error));
    Series {
        name: name.into(),
        points: numbers.iter().map(|(x, mean, _)| (*x, *mean)).collect(),
        band: band.collect(),
    }
}
