"""From the name of a text to windows of ids. NumPy only: nothing here imports JAX.

The road, file by file:

    corpora      `load_corpus` and `prepare`, which run all of it
    sources      a name or a path -> a Source: what is read for each split, found but not yet read
    text           user's files: which file is which split, and their text in pieces
    known_texts    Penn Treebank and tiny Shakespeare, found in a usual place or downloaded
    embedded       the generated corpus
    options      how a text is read: which tokens, which lines, how many words
    tokens       text -> units -> names of tokens, and names -> text: words, characters, bytes
    subwords       the same by a SentencePiece model or a tokenizer.json
    vocab        names of tokens -> ids, and back
    encoding     a Source -> its vocabulary and ids, in one reading of the text
    prepared     ids -> a folder on disk, and the folder, verified -> a Corpus
    corpus       the result: a vocabulary and the ids of train, valid and test
    windows      ids -> rows of a batch, and which rows the step with a given number reads
    cache        where folders of texts, downloads and compiled programs are kept
"""
