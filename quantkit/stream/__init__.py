"""The streamed forward: a checkpoint runs layer by layer; Gram matrices and hidden states are collected."""
