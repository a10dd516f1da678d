//! The stream of what a request gets.

use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::mpsc;

use super::command::Command;
use super::delta::{Delta, End};
use crate::session::RequestId;

/// The output of a request, as a stream of [`Delta`]s. It ends when every sample has ended. Dropped before, it aborts the request.
pub struct Output {
    deltas: mpsc::Receiver<Delta>,
    ids: Vec<RequestId>,
    /// Whether each sample has ended.
    ended: Vec<bool>,
    commands: Sender<Command>,
}

impl Output {
    /// The output of these samples.
    pub(super) fn new(ids: Vec<RequestId>, deltas: mpsc::Receiver<Delta>, commands: Sender<Command>) -> Self {
        let ended = vec![false; ids.len()];
        Self { deltas, ids, ended, commands }
    }

    /// The next delta; `None` when every sample has ended.
    pub async fn next(&mut self) -> Option<Delta> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    fn is_done(&self) -> bool {
        self.ended.iter().all(|&ended| ended)
    }

    /// What a channel that closed too early means for the first sample that has not ended.
    fn broken_off(&mut self) -> Option<Delta> {
        let sample = self.ended.iter().position(|&ended| !ended)?;
        self.ended[sample] = true;
        // The engine closes the channel of a request that it goes on without only if the reader is too slow.
        let stopped = self.commands.send(Command::Abort(Vec::new())).is_err();
        let end = if stopped { End::EngineStopped } else { End::TooSlow };
        Some(Delta { sample: sample as u32, end: Some(end), ..Delta::default() })
    }
}

impl Stream for Output {
    type Item = Delta;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Delta>> {
        if self.is_done() {
            return Poll::Ready(None);
        }
        let Some(delta) = ready!(self.deltas.poll_recv(context)) else {
            return Poll::Ready(self.broken_off());
        };
        if delta.end.is_some()
            && let Some(ended) = self.ended.get_mut(delta.sample as usize)
        {
            *ended = true;
        }
        Poll::Ready(Some(delta))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_done() {
            // An engine that has stopped has nothing to abort.
            let _ = self.commands.send(Command::Abort(std::mem::take(&mut self.ids)));
        }
    }
}
