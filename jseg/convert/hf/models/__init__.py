"""One file for each family of Hugging Face, found by itself.

A family is a module of this folder with
    ARCHITECTURES: classes of transformers, as config.json's `architectures` names them;
    PROCESSOR: the image processor of a folder without preprocessor_config.json, see `processor.pipeline_of`;
    plan(facts) -> Plan.
"""
