//! `codecllm chat`: a conversation, line by line.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{anyhow, bail, Result};
use codecllm::cuda::PeakMemory;
use codecllm::runtime::{peak_rss_bytes, GenerateOptions, Generation, Generator, Message, Prompt};
use codecllm::{Error, ErrorKind};
use serde::Serialize;

use super::device::DeviceArg;
use super::model::{answer, ModelArgs, SamplingArgs};
use super::output::Output;

const COMMANDS: &str = "\
/reset  forget the conversation
/help   show this list
/exit   leave (Ctrl-D does too)";

const EXAMPLES: &str = "\
Examples:
  codecllm chat OUT
  printf 'Hello!\\nWhat did I say?\\n' | codecllm chat OUT
  printf 'Hello!\\n' | codecllm chat OUT --json

Each line of stdin is a turn; the model sees the whole conversation. Commands:
  /reset  forget the conversation
  /help   list the commands
  /exit   leave (Ctrl-D does too)";

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// One answer, for machines.
#[derive(Debug, Serialize)]
struct Turn {
    prompt: String,
    #[serde(flatten)]
    generation: Generation,
}

#[derive(Debug, Serialize)]
struct Report {
    turns: Vec<Turn>,
    weight_bytes: usize,
    peak_rss_bytes: Option<u64>,
    peak_device_bytes: Option<u64>,
}

impl Args {
    pub(crate) fn device(&self) -> DeviceArg {
        self.model.device()
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let (generator, memory) = args.model.open(output)?;
    if generator.chat().is_none() {
        bail!("{}: the model has no chat template; use generate instead", args.model.model.display());
    }
    let options = args.sampling.options();
    let mut chat = Chat { generator: &generator, options, output, history: Vec::new(), turns: Vec::new() };
    chat.run()?;
    if output.is_json() {
        let weight_bytes = generator.model().weight_bytes();
        let peak_device_bytes = memory.map(PeakMemory::finish);
        let report =
            Report { turns: chat.turns, weight_bytes, peak_rss_bytes: peak_rss_bytes(), peak_device_bytes };
        output.report(&report, |_| String::new())?;
    }
    Ok(())
}

struct Chat<'a> {
    generator: &'a Generator,
    options: GenerateOptions,
    output: &'a Output,
    history: Vec<Message>,
    turns: Vec<Turn>,
}

impl Chat<'_> {
    fn run(&mut self) -> Result<()> {
        let interactive = io::stdin().is_terminal();
        if interactive {
            self.output.note("/help lists the commands, Ctrl-D leaves");
        }
        while let Some(line) = self.read_line(interactive)? {
            match line.trim() {
                "" => {}
                "/exit" => break,
                "/reset" => self.history.clear(),
                "/help" => self.output.note(COMMANDS),
                command if command.starts_with('/') => {
                    self.output.note(format_args!("{command}: no such command; /help lists them"));
                }
                said => self.say(said, interactive)?,
            }
        }
        Ok(())
    }

    /// The next line, `None` at the end of stdin.
    fn read_line(&self, interactive: bool) -> Result<Option<String>> {
        if interactive {
            self.output.text("> ")?;
        }
        let mut line = String::new();
        let count = io::stdin().lock().read_line(&mut line).map_err(|e| anyhow!("stdin: {e}"))?;
        if count == 0 && interactive {
            self.output.text("\n")?;
        }
        Ok((count > 0).then_some(line))
    }

    /// One turn. A turn the model cannot take, such as one too long, ends a script but not a conversation.
    fn say(&mut self, said: &str, interactive: bool) -> Result<()> {
        self.history.push(Message::new("user", said));
        let prompt = Prompt::Chat(self.history.clone());
        match answer(self.generator, prompt, &self.options, self.output) {
            Ok(generation) => self.remember(said, generation),
            Err(error) if interactive && is_refusal(&error) => {
                self.history.pop();
                self.output.note(format_args!("error: {error}; /reset starts over"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn remember(&mut self, said: &str, generation: Generation) {
        let Generation { new_tokens, tokens_per_second, .. } = generation;
        self.output.note(format_args!("[{new_tokens} tokens, {tokens_per_second:.1} tokens/s]"));
        self.history.push(Message::new("assistant", generation.text.clone()));
        if self.output.is_json() {
            self.turns.push(Turn { prompt: said.to_owned(), generation });
        }
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::InvalidArgument)
}
