//! `arbora grow`

use super::GrowArgs;
use crate::families::kind;
use crate::families::retrieval::data::Source;
use crate::families::retrieval::{
    RetrievalConfig, RetrievalModel, RetrievalModelKind, RetrievalTask,
};
use crate::folder_lock::with_folder_lock;
use crate::grow::{Choice, Cost, Settings, View, bandit, optimisation, refusal};
use crate::message::tell;
use crate::picture::curves::{self, Panel, Series};
use crate::run::{TrainedRun, config_of, refuse_others};
use crate::statistic::Statistic;
use crate::table::table;
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::is_folder;
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::iter::once;
use std::ops::Range;
use std::process::ExitCode;

/// Rounds at the end of a bandit loop that are also looked at by themselves: what was learned.
const LAST: usize = 100;
/// Points of a curve, at most.
const POINTS: usize = 100;

kind! {
    /// Which loop.
    Loop {
        /// Pull arms of the wheel bandit.
        Bandit = "bandit",
        /// Look for the maximum of functions drawn from Gaussian processes.
        Optimisation = "optimisation",
    }
}

pub fn run(args: GrowArgs) -> Result<ExitCode> {
    refuse_others("grow", &args.run)?;
    let kind = fitting(args.kind, config_of::<RetrievalConfig>(&args.run)?.task)?;
    let out = args.out.as_deref().unwrap_or(&args.run);
    is_folder(out)?;
    let run = TrainedRun::<RetrievalConfig>::load(&args.run, args.backend.as_deref(), &[])?;
    let (model, device) = (&run.model, &run.device);

    let (rounds, repeats) = match kind {
        Loop::Bandit => (500, 10),
        Loop::Optimisation => (40, 50),
    };
    let settings = Settings {
        rounds: args.rounds.map_or(rounds, |rounds| rounds as usize),
        repeats: args.repeats.map_or(repeats, |repeats| repeats as usize),
        random_rounds: match &run.config.data {
            Source::Bandit(bandit) => bandit.min_context,
            Source::Gp(gp) => gp.min_context,
            _ => unreachable!("a loop that fits the task"),
        },
        choice: args.choice,
        seed: args.seed,
    };
    let most_tokens = run.data.features.most_tokens;
    if settings.rounds > most_tokens {
        tell!(
            "contexts grow to {} tokens; the run was trained with at most {most_tokens}",
            settings.rounds
        );
    }
    let views: &[View] = match run.config.model {
        RetrievalModelKind::ReTreever | RetrievalModelKind::OracleRoute => {
            &[View::Learned, View::Random, View::AllLeaves]
        }
        RetrievalModelKind::RandomRoute => &[View::Random, View::AllLeaves],
        RetrievalModelKind::CrossAttention | RetrievalModelKind::Perceiver => &[View::Whole],
    };
    let players = match &run.config.data {
        Source::Gp(gp) => {
            let objectives = optimisation::objectives(gp.kernel, &settings);
            let mut players = play(views, &settings, |view, tick| {
                let played = optimisation::run(model, view, &objectives, &settings, device, tick)?;
                Ok((vec![simple(played.0)], played.1))
            })?;
            players.push(Player {
                name: "random search",
                view: "random-search".into(),
                regret: vec![simple(optimisation::random_search(&objectives, &settings))],
                cost: None,
            });
            players
        }
        _ => play(views, &settings, |view, tick| {
            let (regrets, cost) = bandit::run(model, view, &settings, device, tick)?;
            let regrets = regrets.into_iter().map(|one| -> Regret {
                Box::new(move |rounds| one.percent(rounds.start, rounds.end))
            });
            Ok((regrets.collect(), cost))
        })?,
    };
    let played = Played {
        kind,
        settings,
        players,
    };
    let anew = encoded_anew(model, device);
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let pictures = out.join(format!("grow-{}", kind.name()));
    with_folder_lock(out, || curves::draw(&played.panels(), &pictures))?;
    let text = if args.json {
        let mut value = played.json();
        value["run"] = args.run.to_string_lossy().into();
        value["model"] = json!(run.config.model);
        value["step"] = run.step.into();
        value["backend"] = run.backend.into();
        value["loop"] = json!(kind);
        value["streamed"] = anew.is_none().into();
        value["encoded_anew_because"] = json!(anew);
        value.to_string()
    } else {
        let how = match &anew {
            None => "each round appends to the trees".to_owned(),
            Some(reason) => format!("each round encodes the whole context again: {reason}"),
        };
        format!(
            "{} at step {}, {}, {} rounds, {} repeats, {}\n{how}\n\n{}\n\ncurves: {}.svg",
            run.config.model.name(),
            run.step,
            kind.name(),
            settings.rounds,
            settings.repeats,
            match settings.choice {
                Choice::Thompson => "Thompson sampling",
                Choice::Ucb => "upper confidence bounds",
            },
            played.text(),
            pictures.display()
        )
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The loop asked for, if it fits the run.
fn fitting(asked: Option<Loop>, task: RetrievalTask) -> Result<Loop> {
    let needs = |kind: Loop| match kind {
        Loop::Bandit => RetrievalTask::Bandit,
        Loop::Optimisation => RetrievalTask::Gp,
    };
    let name = task.name();
    let mut all = [Loop::Bandit, Loop::Optimisation].into_iter();
    match asked.or_else(|| all.find(|kind| needs(*kind) == task)) {
        Some(kind) if needs(kind) == task => Ok(kind),
        Some(kind) => bail!(
            "--loop {} needs a run of the task {}, this one is of {name}",
            kind.name(),
            needs(kind).name()
        ),
        None => bail!("loops need a run of the task bandit or gp, this one is of {name}"),
    }
}

/// Why every round encodes the whole context, if it does.
fn encoded_anew(model: &RetrievalModel, device: &Device) -> Option<String> {
    match model.retreever() {
        Some(_) => refusal(model, device).map(|refused| refused.to_string()),
        None => Some("this model has no tree to append to".into()),
    }
}

/// What one kind of world cost over some rounds, in each of its repeats.
type Regret = Box<dyn Fn(Range<usize>) -> Vec<f64>>;

/// Simple regrets after the last of some rounds.
fn simple(regrets: optimisation::Regrets) -> Regret {
    Box::new(move |rounds| regrets.iter().map(|one| one[rounds.end - 1]).collect())
}

/// Who chose, and what came of it.
struct Player {
    /// In tables and pictures.
    name: &'static str,
    /// In JSON.
    view: Value,
    /// By kind of world: the radii of a bandit, and one kind of functions.
    regret: Vec<Regret>,
    /// `None` where no model chose.
    cost: Option<Cost>,
}

/// Runs a loop by each view with a progress bar, hidden where standard error is no terminal.
fn play(
    views: &[View],
    settings: &Settings,
    run: impl Fn(View, &mut dyn FnMut()) -> Result<(Vec<Regret>, Cost)>,
) -> Result<Vec<Player>> {
    let play = |&view: &View| {
        let bar = ProgressBar::new(settings.rounds as u64);
        let template = "{prefix:>16} {bar:24} {pos}/{len} [{elapsed}<{eta}]";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        bar.set_prefix(view.name());
        let played = run(view, &mut || bar.inc(1));
        bar.finish();
        let (regret, cost) = played?;
        Ok(Player {
            name: view.name(),
            view: json!(view),
            regret,
            cost: Some(cost),
        })
    };
    views.iter().map(play).collect()
}

/// A loop that all players have played.
struct Played {
    kind: Loop,
    settings: Settings,
    players: Vec<Player>,
}

/// A line of a table of regrets.
struct Row {
    name: String,
    world: usize,
    rounds: Range<usize>,
}

impl Row {
    /// Mean and standard error of what a player lost.
    fn of(&self, player: &Player) -> Statistic {
        with_error(&player.regret[self.world](self.rounds.clone()))
    }

    fn json(&self, player: &Player) -> Value {
        let all = self.of(player);
        json!({ "mean": all.mean, "standard_error": all.sd })
    }
}

impl Played {
    /// A row for each radius with the regrets from a round on, or for each number of rounds after which simple regret is
    /// reported.
    fn rows(&self, from: usize) -> Vec<Row> {
        let last = self.settings.rounds;
        let row = |name: String, world, rounds| Row {
            name,
            world,
            rounds,
        };
        match self.kind {
            Loop::Bandit => {
                let radii = bandit::DELTAS.iter().enumerate();
                let rows = radii.map(|(world, delta)| row(delta.to_string(), world, from..last));
                rows.collect()
            }
            Loop::Optimisation => {
                let marks = [5, 10, 20, 40, 80, 160, 320].into_iter();
                let marks = marks.filter(|mark| *mark < last).chain([last]);
                marks
                    .map(|mark| row(mark.to_string(), 0, 0..mark))
                    .collect()
            }
        }
    }

    /// The players that are models, with what they cost.
    fn costs(&self) -> Vec<(&'static str, &Cost)> {
        let players = self.players.iter();
        let costs = players.filter_map(|one| Some((one.name, one.cost.as_ref()?)));
        costs.collect()
    }

    fn json(&self) -> Value {
        let settings = &self.settings;
        let (all, last) = (
            self.rows(0),
            self.rows(settings.rounds.saturating_sub(LAST)),
        );
        let method = |player: &Player| {
            let rows = all.iter().zip(&last).map(|(row, last)| match self.kind {
                Loop::Bandit => json!({
                    "delta": bandit::DELTAS[row.world],
                    "percent_of_uniform": row.json(player),
                    "last_percent_of_uniform": last.json(player),
                }),
                Loop::Optimisation => {
                    json!({ "round": row.rounds.end, "simple_regret": row.json(player) })
                }
            });
            let regret: Vec<Value> = rows.collect();
            let mut method = json!({ "view": player.view, "regret": regret });
            if let Some(cost) = &player.cost {
                method["cost"] = json!({
                    "nodes_read": cost.nodes_read,
                    "milliseconds_per_round": {
                        "middle": cost.milliseconds(0.5), "end": cost.milliseconds(1.0),
                    },
                });
            }
            method
        };
        json!({
            "rounds": settings.rounds, "repeats": settings.repeats,
            "random_rounds": settings.random_rounds, "choice": settings.choice,
            "seed": settings.seed, "methods": self.players.iter().map(method).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let rounds = self.settings.rounds;
        let (title, corner, digits, worlds) = match self.kind {
            Loop::Bandit => ("regret in % of uniform choice", "delta", 2, "repeats"),
            Loop::Optimisation => ("simple regret after each round", "round", 4, "functions"),
        };
        let names: Vec<&str> = self.players.iter().map(|one| one.name).collect();
        let block = |from: usize| {
            let rows = self.rows(from).into_iter().map(|row| {
                let cells = self.players.iter().map(|one| row.of(one).text(digits));
                once(row.name.clone()).chain(cells).collect()
            });
            named(corner, &names, rows)
        };
        let mut text = title.to_owned();
        if self.settings.repeats > 1 {
            text += &format!(", mean ± standard error over {worlds}");
        }
        text += &format!("\n{}", block(0));
        if self.kind == Loop::Bandit && rounds > LAST {
            let last = block(rounds - LAST);
            text += &format!("\n\nover the last {LAST} rounds\n{last}");
        }
        format!("{text}\n\n{}", costs(&self.costs(), rounds))
    }

    /// Regret by round, and time by length of context.
    fn panels(&self) -> Vec<Panel> {
        let rounds = self.settings.rounds;
        let shown: Vec<usize> = (1..=rounds).step_by(rounds.div_ceil(POINTS)).collect();
        let (titles, y_label) = match self.kind {
            Loop::Bandit => {
                let titles = bandit::DELTAS.iter();
                let titles = titles.map(|delta| format!("Regret, core of radius {delta}"));
                (titles.collect(), "% of uniform choice so far")
            }
            Loop::Optimisation => (vec!["Simple regret".into()], "maximum - best seen"),
        };
        let regrets = titles.into_iter().enumerate().map(|(world, title)| {
            let line = |one: &Player| series(one.name, &shown, &one.regret[world]);
            Panel {
                title,
                x_label: "round".into(),
                y_label: y_label.into(),
                series: self.players.iter().map(line).collect(),
                ..Panel::default()
            }
        });
        let times = self.costs().into_iter().map(|(name, cost)| Series {
            name: name.into(),
            points: cost.by_tokens(self.settings.random_rounds),
            ..Series::default()
        });
        let times = Panel {
            title: "Time of a round".into(),
            x_label: "tokens of context".into(),
            y_label: "ms, all worlds".into(),
            series: times.collect(),
            ..Panel::default()
        };
        regrets.chain([times]).collect()
    }
}

/// What rounds cost, for a person.
fn costs(players: &[(&'static str, &Cost)], rounds: usize) -> String {
    let names: Vec<&str> = players.iter().map(|(name, _)| *name).collect();
    let row = |text: &str, cell: &dyn Fn(&Cost) -> String| {
        let cells = players.iter().map(|(_, cost)| cell(cost));
        once(text.to_owned()).chain(cells).collect()
    };
    let time = |share: f64| move |cost: &Cost| format!("{:.2}", cost.milliseconds(share));
    let read = |cost: &Cost| {
        let read = cost.nodes_read;
        read.map_or("-".into(), |read| format!("{read:.1}"))
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
    let head = once(corner).chain(names.iter().copied()).map(str::to_owned);
    let rows: Vec<Vec<String>> = once(head.collect()).chain(rows).collect();
    table(&rows, 1).trim_end().to_owned()
}

/// Means with a band of one standard error to either side.
fn series(name: &str, rounds: &[usize], regret: &Regret) -> Series {
    let means = rounds.iter().map(|round| with_error(&regret(0..*round)));
    let means: Vec<Statistic> = means.collect();
    let points = rounds.iter().zip(&means);
    let band = means.iter().map(|all| {
        let error = all.sd.unwrap_or(f64::NAN);
        (all.mean - error, all.mean + error)
    });
    Series {
        name: name.into(),
        points: points
            .map(|(round, all)| (*round as f64, all.mean))
            .collect(),
        band: band.collect(),
    }
}
