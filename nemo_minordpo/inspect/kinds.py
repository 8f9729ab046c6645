"""What is known of a pair: the measures and flags, by the names that rules and the columns of pairs.csv have."""

from dataclasses import dataclass

TEST, TOKENIZER, MODEL = "--test", "--tokenizer or --model", "--model"


@dataclass(frozen=True)
class Kind:
    """A measure or a flag.

    text: what it says of a pair.
    needs: the option without which it is not known; "" = none.
    """

    text: str
    needs: str = ""


# Measures of prepare/statistics.py keep their names.
MEASURES = {
    "edit_distance": Kind("edit distance of the responses in characters, as a share of the longer one"),
    "shared_prefix": Kind("shared beginning of the responses, as a share of the longer one"),
    "prompt_characters": Kind("characters of the prompt"),
    "chosen_characters": Kind("characters of the chosen response"),
    "rejected_characters": Kind("characters of the rejected response"),
    "prompt_words": Kind("words of the prompt, separated by white space"),
    "chosen_words": Kind("words of the chosen response"),
    "rejected_words": Kind("words of the rejected response"),
    "length_ratio": Kind("characters of the chosen response / of the rejected one"),
    "prompt_tokens": Kind("tokens of the prompt", TOKENIZER),
    "chosen_tokens": Kind("tokens of the chosen response and its end", TOKENIZER),
    "rejected_tokens": Kind("tokens of the rejected response and its end", TOKENIZER),
    "chosen_logp": Kind("log-probability of the chosen response, nats", MODEL),
    "rejected_logp": Kind("log-probability of the rejected response, nats", MODEL),
    "logp_margin": Kind("chosen_logp - rejected_logp, nats", MODEL),
    "ches": Kind("CHES: the higher, the more training on the pair lowers its chosen response", MODEL),
    "ches_per_token": Kind("CHES per token, comparable between responses of different length", MODEL),
}
# known from the text of a pair alone
OF_TEXT = tuple(name for name, kind in MEASURES.items() if not kind.needs)
OF_TOKENS = tuple(name for name, kind in MEASURES.items() if kind.needs == TOKENIZER)

FLAGS = {
    "duplicate": Kind("an earlier pair has the same texts"),
    "near_duplicate": Kind("an earlier pair is almost the same: prompt and responses"),
    "duplicate_prompt": Kind("an earlier pair has the same prompt"),
    "near_duplicate_prompt": Kind("an earlier pair has almost the same prompt"),
    "prompt_in_other_file": Kind("a pair of an earlier file has the same prompt"),
    "near_prompt_in_other_file": Kind("a pair of an earlier file has almost the same prompt"),
    "in_test": Kind("the prompt contains a question of the test set", TEST),
    "near_test": Kind("the prompt contains almost all of a question of the test set", TEST),
    "same_words": Kind("the responses differ only in white space and capitals"),
    "other_script": Kind("two of prompt, chosen and rejected response have no script in common"),
    "refusal": Kind("a response begins with a refusal"),
    "chosen_refusal": Kind("the chosen response begins with a refusal"),
    "rejected_refusal": Kind("the rejected response begins with a refusal"),
    "cut": Kind("a response ends without the end of a sentence"),
    "chosen_cut": Kind("the chosen response ends without the end of a sentence"),
    "rejected_cut": Kind("the rejected response ends without the end of a sentence"),
    "templated_twice": Kind("rendered by two templates, or twice by one"),
    "nul": Kind("a text has a NUL character, at which tools may cut it"),
    "lower_reward": Kind("the chosen response has the lower reward"),
    "overlong": Kind("longer than --seq-length: training leaves it out", TOKENIZER),
    "not_tokenizable": Kind("training refuses its tokens; `minordpo preview` says why", TOKENIZER),
    "chosen_less_likely": Kind("the chosen response is less likely than the rejected one", MODEL),
    "chosen_less_likely_per_token": Kind("the same per token, where short responses have no advantage", MODEL),
}
OF_PAIR = (
    "same_words", "other_script", "refusal", "chosen_refusal", "rejected_refusal", "cut", "chosen_cut", "rejected_cut",
    "templated_twice", "nul", "lower_reward",
)  # fmt: skip
