"""The fault laboratory: the real query path with one cause of slowness in it at a time, and what the findings say of it.

`laboratory.py` runs and measures, `world.py` builds what the path calls, `servers.py`, `fakes.py` and `readings.py` are what is made
slow, `causes_*.py` are the causes. `python -m tests.faults` prints the table below anew: seconds without and with the cause (medians
of 5 pairs on two cores), what removing it saves, and what the finding says that it saves, which came first each time.

    cause                                         healthy     slow   saving     said
    embedder loaded inside the request              0.123    0.750    0.627    0.618
    reranker loaded inside the request              0.119    0.582    0.463    0.450
    first run after the load                        0.133    0.576    0.442    0.451
    remote model constructed for each request       0.122    0.675    0.553    0.504
    reranker on the CPU beside an idle GPU          0.126    0.538    0.412    0.410
    embedder on the CPU beside an idle GPU          0.119    0.578    0.459    0.454
    models 0.3 s away                               0.128    0.738    0.610    0.604
    a time-out hidden in a retry                    0.126    0.711    0.584    0.567
    a time-out that ends in the fused order         0.121    0.607    0.486    0.472
    a queue at our GPU server                       0.124    0.608    0.485    0.459
    our own queue before the reranker               0.128    0.605    0.477    0.470
    store 40 ms away                                0.112    0.192    0.080        –
    store 150 ms away                               0.102    0.409    0.307    0.305
    store 300 ms away                               0.131    0.733    0.601    0.606
    store opened inside the request                 0.214    0.755    0.541    0.542
    collection released                             0.125    0.601    0.476    0.453
    collection never flushed                        0.125    0.906    0.781    0.793
    500 candidates                                  0.122    0.587    0.465    0.441
    busy disk                                       0.126    0.584    0.458    0.462
    vLLM queues                                     0.142    0.553    0.411    0.420
    vLLM's KV cache is full                         0.137    0.568    0.430    0.420
    slow first token                                0.120    0.545    0.425    0.426
    slow decoding                                   0.121    0.544    0.422    0.421
    503 first, then an answer                       0.123    1.130    1.007    1.005
    prompt of 10,000 tokens                         0.121    0.492    0.371    0.370
    long answer                                     0.126    0.539    0.413    0.431
    HyDE that changes nothing                       0.438    0.772    0.334    0.340
    processors busy                                 0.121    0.563    0.441    0.409
    GPU throttled by heat                           0.127    0.536    0.409    0.408
    GPU throttled by its power limit                0.136    0.543    0.407    0.408
    GPU shared with another process                 0.137    0.542    0.405    0.409
    GPU asleep, persistence off                     0.131    0.537    0.406    0.408
    GPU clocks low                                  0.120    0.537    0.416    0.408
    GPU memory full                                 0.131    0.538    0.408    0.408

A Milvus server 40 ms away costs less than a finding needs. What of a cause is not real, its `Fault.note` says.
"""
