"""RoBERTa's relatives with a unigram vocabulary."""

from tests.families.models.bert import encoder
from tests.families.models.bert_relatives import ROBERTA

XLM_ROBERTA = {**ROBERTA, "model_type": "xlm-roberta"}
LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
UNIGRAM = {"tokenizer": "unigram"}

CASES = (
    encoder("xlm-roberta", XLM_ROBERTA, **UNIGRAM),
    # the converter's file of a classifier has no pooling, so llama.cpp gives no scores of it by default
    encoder(
        "xlm-roberta-reranker",
        {**XLM_ROBERTA, **LABELS},
        "AutoModelForSequenceClassification",
        converter=False,
        **UNIGRAM,
    ),
    # the converter takes it for BERT, whose positions begin at the first row
    encoder("camembert", {**ROBERTA, "model_type": "camembert"}, converter=False, **UNIGRAM),
)
